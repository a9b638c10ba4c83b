//! Reading and writing a span front to back, translated once.
#![allow(unsafe_code, reason = "copies at translated addresses")]

use crate::{Fault, Memory, Span, raw};

/// A span that is filled front to back, translated once: from [`Memory::fill`].
#[derive(Debug)]
pub struct Filler<'m> {
    memory: &'m Memory,
    to: Span,
    at: *mut u8,
    left: u32,
}

impl<'m> Filler<'m> {
    /// `at` is the resolved address of `to` in `memory`.
    #[inline]
    pub(crate) fn new(memory: &'m Memory, to: Span, at: *mut u8) -> Self {
        Self {
            memory,
            to,
            at,
            left: to.len(),
        }
    }

    /// Takes the next `len` bytes.
    #[inline]
    fn next(&mut self, len: usize) -> Result<*mut u8, Fault> {
        if len > self.left as usize {
            return Err(Fault::Length);
        }
        let at = self.at;
        self.at = at.wrapping_add(len);
        self.left -= len as u32;
        Ok(at)
    }

    /// Private bytes go next.
    ///
    /// # Errors
    /// [`Fault::Length`] if there is less room.
    #[inline]
    pub fn write(&mut self, from: &[u8]) -> Result<(), Fault> {
        let to = self.next(from.len())?;
        // SAFETY: `to` is valid for the length of `from`: it lies in a span that was translated, and whose memory is
        // borrowed.
        unsafe { raw::copy(to, from.as_ptr(), from.len()) };
        Ok(())
    }

    /// A little-endian number goes next.
    ///
    /// # Errors
    /// [`Fault::Length`] if there is less room.
    #[inline]
    pub fn write_u64(&mut self, value: u64) -> Result<(), Fault> {
        let to = self.next(8)?;
        // SAFETY: as in `write`.
        unsafe { raw::store8(to, value.to_le()) };
        Ok(())
    }

    /// A little-endian number goes next.
    ///
    /// # Errors
    /// [`Fault::Length`] if there is less room.
    #[inline]
    pub fn write_u32(&mut self, value: u32) -> Result<(), Fault> {
        let to = self.next(4)?;
        // SAFETY: as in `write`.
        unsafe { raw::store4(to, value.to_le()) };
        Ok(())
    }

    /// The bytes of `from`, a span of `source`, go next, without a bounce.
    ///
    /// # Errors
    /// [`Fault::Length`] if there is less room; [`Fault::Range`]; [`Fault::Gone`] if the source is.
    #[inline]
    pub fn copy(&mut self, source: &Memory, from: Span) -> Result<(), Fault> {
        let src = source.resolve(from)?;
        let to = self.next(from.len() as usize)?;
        // SAFETY: both are valid for the length of `from`; of `to` as in `write`.
        unsafe { raw::copy(to, src, from.len() as usize) };
        source.check()
    }

    /// All of the span has been written.
    ///
    /// # Errors
    /// [`Fault::Length`] if some has not; [`Fault::Gone`].
    #[inline]
    pub fn finish(self) -> Result<(), Fault> {
        self.memory.wrote_span(self.to)?;
        if self.left == 0 {
            Ok(())
        } else {
            Err(Fault::Length)
        }
    }
}

/// A span that is read front to back, translated once: from [`Memory::drain`].
#[derive(Debug)]
pub struct Drainer<'m> {
    memory: &'m Memory,
    at: *const u8,
    left: u32,
}

impl<'m> Drainer<'m> {
    /// `at` is the resolved address of `len` bytes in `memory`.
    #[inline]
    pub(crate) fn new(memory: &'m Memory, at: *const u8, len: u32) -> Self {
        Self {
            memory,
            at,
            left: len,
        }
    }

    /// The next 16 bytes, little-endian, which stay where they are.
    ///
    /// # Errors
    /// [`Fault::Length`] if there are fewer.
    #[inline]
    pub fn peek_u128(&self) -> Result<u128, Fault> {
        if self.left < 16 {
            return Err(Fault::Length);
        }
        // SAFETY: `at` is valid for `left` bytes, as the span was translated and its memory is borrowed.
        Ok(unsafe { raw::load_u128(self.at) })
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// [`Fault::Length`] if there are fewer.
    #[inline]
    pub fn skip(&mut self, len: u32) -> Result<(), Fault> {
        self.left = self.left.checked_sub(len).ok_or(Fault::Length)?;
        self.at = self.at.wrapping_add(len as usize);
        Ok(())
    }

    /// Copies the next bytes to private memory.
    ///
    /// # Errors
    /// [`Fault::Length`] if there are fewer.
    #[inline]
    pub fn read(&mut self, to: &mut [u8]) -> Result<(), Fault> {
        let from = self.at;
        self.skip(u32::try_from(to.len()).map_err(|_| Fault::Length)?)?;
        // SAFETY: `from` was valid for the length of `to`, which `skip` has compared.
        unsafe { raw::copy(to.as_mut_ptr(), from, to.len()) };
        Ok(())
    }

    /// All that was wanted has been read.
    ///
    /// # Errors
    /// [`Fault::Gone`]: what was read holds zeros or a mix.
    #[inline]
    pub fn finish(self) -> Result<(), Fault> {
        self.memory.check()
    }
}
