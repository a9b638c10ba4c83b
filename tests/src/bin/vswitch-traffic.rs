//! Sends bytes over TCP or UDP to its twin, which sends them back, and compares their SHA-256.
//!
//! `vswitch-traffic serve PORT` answers on TCP and UDP; `vswitch-traffic tcp|udp ADDRESS PORT BYTES` checks.
//! UDP goes as datagrams of growing length up to BYTES, the longer ones in fragments.

use std::{
    env,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(3);
/// Datagrams of one UDP check.
const DATAGRAMS: usize = 12;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match *args.as_slice() {
        ["serve", port] => serve(port),
        ["tcp", address, port, bytes] => {
            target(address, port, bytes).and_then(|(a, n)| check_tcp(a, n))
        }
        ["udp", address, port, bytes] => {
            target(address, port, bytes).and_then(|(a, n)| check_udp(a, n))
        }
        _ => Err(anyhow::anyhow!(
            "usage: vswitch-traffic serve PORT | tcp|udp ADDRESS PORT BYTES"
        )),
    };
    let (text, code) = match result {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (format!("{error:#}"), ExitCode::FAILURE),
    };
    // Both on standard output: the guest's command channel has only one.
    let _ = writeln!(std::io::stdout(), "{text}");
    code
}

fn target(address: &str, port: &str, bytes: &str) -> Result<(SocketAddr, usize)> {
    let ip: IpAddr = address
        .parse()
        .with_context(|| format!("{address} is no address"))?;
    let port = port.parse().with_context(|| format!("{port} is no port"))?;
    Ok((
        SocketAddr::new(ip, port),
        bytes
            .parse()
            .with_context(|| format!("{bytes} is no length"))?,
    ))
}

fn serve(port: &str) -> Result<String> {
    let port: u16 = port.parse().with_context(|| format!("{port} is no port"))?;
    // One dual-stack socket each; IPv4 arrives as a mapped address.
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let udp = UdpSocket::bind(any).with_context(|| format!("binding UDP port {port}"))?;
    let tcp = TcpListener::bind(any).with_context(|| format!("binding TCP port {port}"))?;
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(buffer.get(..len).unwrap_or_default(), from);
        }
    });
    for stream in tcp.incoming() {
        // A peer that gave up is the client's failure to report.
        thread::spawn(move || stream.map(echo));
    }
    Ok(String::new())
}

fn echo(mut stream: TcpStream) -> Result<()> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    stream.write_all(&bytes)?;
    Ok(())
}

/// Bytes that repeat with no period a segment or page could hide.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

fn same(sent: &[u8], back: &[u8]) -> Result<String> {
    let (sent_hash, back_hash) = (Sha256::digest(sent), Sha256::digest(back));
    ensure!(
        sent_hash == back_hash,
        "sent {} bytes with SHA-256 {sent_hash:x}, got back {} with {back_hash:x}",
        sent.len(),
        back.len()
    );
    Ok(format!("{sent_hash:x}"))
}

fn check_tcp(address: SocketAddr, bytes: usize) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let sent = pattern(bytes, bytes as u64);
    stream.write_all(&sent).context("sending")?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream
        .read_to_end(&mut back)
        .with_context(|| format!("receiving, {} of {bytes} bytes came", back.len()))?;
    same(&sent, &back)
}

/// The next datagram; also where the process was stopped and goes on, which interrupts a call with a time limit.
fn answer(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn check_udp(address: SocketAddr, longest: usize) -> Result<String> {
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket
        .connect(address)
        .with_context(|| format!("connecting to {address}"))?;
    socket.set_read_timeout(Some(ANSWER))?;
    let mut buffer = vec![0; 65536];
    let (mut sent, mut back) = (Vec::new(), Vec::new());
    for number in 1..=DATAGRAMS {
        let datagram = pattern((longest * number / DATAGRAMS).max(1), number as u64);
        socket
            .send(&datagram)
            .with_context(|| format!("sending {} bytes", datagram.len()))?;
        let len = answer(&socket, &mut buffer)
            .with_context(|| format!("no answer to {} bytes", datagram.len()))?;
        if len != datagram.len() {
            bail!("sent {} bytes, got back {len}", datagram.len());
        }
        sent.extend(&datagram);
        back.extend(buffer.iter().take(len));
    }
    same(&sent, &back)
}
