//! What guests of our own monitor run beside busybox. It is linked statically, because there are no libraries.
//!
//! `vswitch-guest sniff COUNT SECONDS` prints the frames that this machine's interfaces receive, as lines
//! `DESTINATION SOURCE TYPE LENGTH`; `vswitch-guest join GROUP SECONDS` is a member of an IPv4 multicast group so long;
//! `vswitch-guest poke FILE OFFSET COUNT` writes four zero bytes to a place of a file (a register, if that is a BAR in
//! sysfs) again and again; `vswitch-guest facts NAME=VALUE…` answers what the host asks by key/value exchange of Hyper-V.

use std::{
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::FileExt,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::net::{
    AddressFamily, RecvFlags, SocketType, recv, socket,
    sockopt::{Timeout, set_socket_timeout},
};

/// `ETH_P_ALL` in network byte order (packet(7)).
const EVERY_PROTOCOL: u32 = 0x0300;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match *args.as_slice() {
        ["sniff", count, seconds] => sniff(count, seconds),
        ["join", group, seconds] => join(group, seconds),
        ["poke", file, offset, count] => poke(file, offset, count),
        ["facts", ref items @ ..] => facts(items),
        _ => Err(anyhow::anyhow!(
            "usage: vswitch-guest sniff COUNT SECONDS | join GROUP SECONDS | poke FILE OFFSET COUNT | facts NAME=VALUE…"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stdout(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().with_context(|| format!("{text} is no number"))
}

fn sniff(count: &str, seconds: &str) -> Result<()> {
    let count: u32 = number(count)?;
    let end = Instant::now() + Duration::from_secs(number(seconds)?);
    let protocol =
        rustix::net::RawProtocol::new(EVERY_PROTOCOL).map(rustix::net::Protocol::from_raw);
    let packets = socket(AddressFamily::PACKET, SocketType::RAW, protocol)
        .context("opening a packet socket")?;
    set_socket_timeout(&packets, Timeout::Recv, Some(Duration::from_millis(200)))?;
    let mut frame = [0; 2048];
    let mut seen = 0;
    while seen < count && Instant::now() < end {
        let Ok((len, _)) = recv(&packets, &mut frame, RecvFlags::empty()) else {
            continue;
        };
        let Some((destination, rest)) = frame.get(..len).and_then(|f| f.split_first_chunk::<6>())
        else {
            continue;
        };
        let Some((source, [high, low, ..])) = rest.split_first_chunk::<6>() else {
            continue;
        };
        let line = format!(
            "{} {} {high:02x}{low:02x} {len}",
            mac(destination),
            mac(source)
        );
        writeln!(std::io::stdout(), "{line}")?;
        seen += 1;
    }
    Ok(())
}

fn mac(bytes: &[u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn join(group: &str, seconds: &str) -> Result<()> {
    let group: Ipv4Addr = group
        .parse()
        .with_context(|| format!("{group} is no IPv4 address"))?;
    if !group.is_multicast() {
        bail!("{group} is no multicast group");
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket
        .join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)
        .with_context(|| format!("joining {group}"))?;
    writeln!(std::io::stdout(), "joined")?;
    thread::sleep(Duration::from_secs(number(seconds)?));
    Ok(())
}

fn poke(path: &str, offset: &str, count: &str) -> Result<()> {
    let (offset, count): (u64, u32) = (number(offset)?, number(count)?);
    let file = fs::File::options()
        .write(true)
        .open(path)
        .with_context(|| path.to_owned())?;
    for _ in 0..count {
        file.write_all_at(&[0; 4], offset)
            .with_context(|| format!("writing at {offset} of {path}"))?;
    }
    Ok(())
}

/// What `hv_utils` and a program in its guest say to each other: `struct hv_kvp_msg` of `linux/hyperv.h`.
mod exchange {
    /// Its bytes: operation and pool, and the longest body, which ends at a multiple of 4.
    pub(super) const MESSAGE: usize = 4 + 7428;
    /// Where the name and the value are.
    pub(super) const NAME: usize = 20;
    pub(super) const VALUE: usize = 532;
    /// Bytes of these with the zero at their end.
    pub(super) const NAME_BYTES: usize = VALUE - NAME;
    pub(super) const VALUE_BYTES: usize = 2048;

    /// Operations: one by one all items of a pool, and the first word of a program to the driver, which it gives back.
    pub(super) const ENUMERATE: u8 = 3;
    pub(super) const REGISTER: u8 = 100;
    /// The pool of what the guest knows of itself.
    pub(super) const AUTO: u8 = 2;

    /// Results, which take the place of operation and pool in an answer.
    pub(super) const OK: u32 = 0;
    pub(super) const NO_MORE: u32 = 0x8007_0103;
    pub(super) const FAIL: u32 = 0x8000_4005;
}

/// Plays `hv_kvp_daemon` with these items, until it is killed.
fn facts(items: &[&str]) -> Result<()> {
    let items: Vec<(&str, &str)> = items
        .iter()
        .map(|item| {
            item.split_once('=')
                .with_context(|| format!("{item} is no NAME=VALUE"))
        })
        .collect::<Result<_>>()?;
    let path = "/dev/vmbus/hv_kvp";
    let mut device = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .context(path)?;
    let mut message = [0; exchange::MESSAGE];
    let [operation, ..] = &mut message;
    *operation = exchange::REGISTER;
    device.write_all(&message).context("registering")?;
    loop {
        device.read_exact(&mut message).context("reading")?;
        if message.first() == Some(&exchange::REGISTER) {
            continue;
        }
        let status = answer(&items, &mut message);
        if let Some(result) = message.first_chunk_mut() {
            *result = status.to_le_bytes();
        }
        device.write_all(&message).context("answering")?;
    }
}

/// Puts the answer to a question in its place; gives its status.
fn answer(items: &[(&str, &str)], message: &mut [u8; exchange::MESSAGE]) -> u32 {
    let [operation, pool, _, _, index @ ..] = message;
    if (*operation, *pool) != (exchange::ENUMERATE, exchange::AUTO) {
        return exchange::FAIL;
    }
    let index = index.first_chunk().copied().map(u32::from_le_bytes);
    let Some((name, value)) = index.and_then(|index| items.get(index as usize)) else {
        return exchange::NO_MORE;
    };
    for (text, at, room) in [
        (name, exchange::NAME, exchange::NAME_BYTES),
        (value, exchange::VALUE, exchange::VALUE_BYTES),
    ] {
        let Some(place) = message.get_mut(at..at + room) else {
            return exchange::FAIL;
        };
        place.fill(0);
        let bytes = text.bytes().take(room - 1);
        place
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = from);
    }
    exchange::OK
}
