//! What the command line asks for: words `key=value`; those behind a `/` are about the second adapter.

/// The words about one adapter.
#[derive(Clone, Copy)]
pub struct Options<'a>(&'a str);

impl<'a> Options<'a> {
    /// Of the adapter `index`.
    pub fn new(line: &'a str, index: usize) -> Options<'a> {
        Options(line.split('/').nth(index).unwrap_or_default())
    }

    /// The value of a key.
    pub fn text(self, key: &str) -> Option<&'a str> {
        let mut words = self.0.split_ascii_whitespace();
        words
            .find_map(|word| word.split_once('=').filter(|(name, _)| *name == key))
            .map(|(_, value)| value)
    }

    /// The value of a key, or `default`.
    pub fn number(self, key: &str, default: u64) -> u64 {
        let parse = |text: &str| {
            text.parse()
                .unwrap_or_else(|_| panic!("{key}={text}: not a number"))
        };
        self.text(key).map_or(default, parse)
    }

    /// An address of `N` numbers.
    pub fn address<const N: usize>(self, key: &str, separator: char, radix: u32) -> [u8; N] {
        let text = self.text(key).unwrap_or_else(|| panic!("no {key}="));
        let mut parts = text
            .split(separator)
            .map(|part| u8::from_str_radix(part, radix));
        core::array::from_fn(|_| match parts.next() {
            Some(Ok(byte)) => byte,
            _ => panic!("{key}={text}: no address"),
        })
    }
}
