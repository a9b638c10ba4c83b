//! What guests of our own monitor run beside busybox. It is linked statically, because there are no libraries.
//!
//! `vswitch-guest sniff COUNT SECONDS` prints the frames that this machine's interfaces receive, as lines
//! `DESTINATION SOURCE TYPE LENGTH`; `vswitch-guest join GROUP SECONDS` is a member of an IPv4 multicast group so long;
//! `vswitch-guest poke FILE OFFSET COUNT` writes four zero bytes to a place of a file (a register, if that is a BAR in
//! sysfs) again and again.

use std::{
    env, fs,
    io::Write,
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
        _ => Err(anyhow::anyhow!(
            "usage: vswitch-guest sniff COUNT SECONDS | join GROUP SECONDS | poke FILE OFFSET COUNT"
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
