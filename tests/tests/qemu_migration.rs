//! Live migration of a stock guest from one vhost-user port to another: what the switch writes into its memory while
//! it is being copied must arrive, and its connections go on.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vswitch_tests::{
    Lab, QemuGuest, cmd,
    guest::{Attachment, GuestConfig, migration::Migration},
    station::Address,
};

const HOST: Address = Address { net: 66, host: 1 };
const GUEST: Address = Address { net: 66, host: 2 };
/// The guest's program there answers all the time.
const AWAKE: u16 = 7001;
/// The guest's program there is stopped during the migration, so that what it is sent stays in the kernel's buffers,
/// where nobody but the switch has written it.
const ASLEEP: u16 = 7002;
/// What is sent to it.
const WAITING: usize = 1 << 20;

/// Bytes of which no part is like another.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn connect(lab: &Lab, port: u16) -> Result<TcpStream> {
    let address = (GUEST.ip(false), port);
    let stream = lab.host.inside(|| TcpStream::connect(address))??;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Ends the sending, and checks that all that was sent comes back.
fn comes_back(mut stream: TcpStream, sent: &[u8]) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream
        .read_to_end(&mut back)
        .with_context(|| format!("{} of {} bytes came back", back.len(), sent.len()))?;
    let wrong = sent.iter().zip(&back).position(|(sent, back)| sent != back);
    ensure!(wrong.is_none(), "byte {wrong:?} is not as it was sent");
    ensure!(
        back.len() == sent.len(),
        "{} of {} bytes came back",
        back.len(),
        sent.len()
    );
    Ok(())
}

/// Sends blocks until `stop`, and checks that they come back. Gives their bytes.
fn stream(mut stream: TcpStream, stop: &AtomicBool) -> Result<usize> {
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let block = pattern(8 << 10, sent.len() as u64 + 1);
        stream.write_all(&block)?;
        sent.extend(block);
        thread::sleep(Duration::from_millis(10));
    }
    comes_back(stream, &sent)?;
    Ok(sent.len())
}

fn config(lab: &Lab, port: &str, device: &[&str]) -> Result<GuestConfig> {
    let socket = lab.daemon.socket(port);
    lab.ctl(&format!(
        "port add lab {port} --vhost-user {socket} --server"
    ))?;
    Ok(GuestConfig {
        attachment: Attachment::VhostUserClient(socket),
        mac: GUEST.mac(),
        addresses: GUEST.both().to_vec(),
        device: device.iter().map(|&option| option.to_owned()).collect(),
    })
}

/// The port that frames for the guest go to.
fn place(lab: &Lab) -> Result<Value> {
    let table = lab.ctl("fdb show lab")?;
    let entries = table.get("entries").and_then(Value::as_array);
    let entries = entries.with_context(|| format!("no entries in {table}"))?;
    let entry = entries
        .iter()
        .find(|entry| entry.get("mac").and_then(Value::as_str) == Some(&GUEST.mac()));
    Ok(entry
        .and_then(|entry| entry.get("port"))
        .cloned()
        .unwrap_or_default())
}

/// Starts what runs in the guest: the two programs that answer, and one that sends again and again.
fn occupy(guest: &mut QemuGuest) -> Result<()> {
    // Room for what is sent to a program that sleeps.
    guest.run("echo 4096 8388608 8388608 >/proc/sys/net/ipv4/tcp_rmem")?;
    guest.run("echo 8192 8192 8192 >/proc/sys/net/ipv4/tcp_mem")?;
    for port in [AWAKE, ASLEEP] {
        guest.run(&format!(
            "vswitch-traffic serve {port} >/dev/null 2>&1 & echo $! >/tmp/pid{port}"
        ))?;
        let listens = format!("grep -q ':{port:04X} ' /proc/net/tcp6");
        cmd::wait_until("the guest to listen", Duration::from_secs(20), || {
            Ok(guest.run(&listens).is_ok())
        })?;
    }
    guest.run(&format!(
        "kill -STOP $(cat /tmp/pid{ASLEEP}); touch /tmp/go"
    ))?;
    let check = format!("vswitch-traffic tcp {} 7000 500000", HOST.ip(false));
    guest
        .run(&format!(
            "(while [ -e /tmp/go ]; do {check} || echo FAILED; done; echo END) >/tmp/sent 2>&1 &"
        ))
        .map(drop)
}

/// Sends to the program that sleeps, and waits until all of it is in the guest.
fn fill(lab: &Lab, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = connect(lab, ASLEEP)?;
    stream.write_all(bytes)?;
    let peer = format!("{}:{ASLEEP}", GUEST.ip(false));
    cmd::wait_until("the guest to have it all", Duration::from_secs(10), || {
        let said = lab.host.run(&["ss", "-Htn", "dst", &peer])?;
        // State, receive queue, send queue: what was not acknowledged yet.
        Ok(said.split_whitespace().nth(2) == Some("0"))
    })?;
    Ok(stream)
}

#[test]
fn a_guest_moves_to_another_port_and_its_connections_go_on() -> Result<()> {
    moves(&[])
}

#[test]
fn a_guest_with_packed_rings_does_so_too() -> Result<()> {
    moves(&["packed=on"])
}

/// Migrates a guest with these options of its NIC.
fn moves(device: &[&str]) -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type internal")?;
    let _host = lab.host_station("lab", HOST)?;
    let mut guest = QemuGuest::boot(&lab.host, &config(&lab, "before", device)?)?;
    occupy(&mut guest)?;
    ensure!(place(&lab)? == "before");

    let (steady, stop) = (connect(&lab, AWAKE)?, AtomicBool::new(false));
    let waiting = pattern(WAITING, 7);
    let (mut guest, sent, asleep) = thread::scope(|scope| -> Result<_> {
        let steady = scope.spawn(|| stream(steady, &stop));
        let moved = (|| -> Result<_> {
            let mut migration =
                Migration::start(guest, &lab.host, &config(&lab, "after", device)?)?;
            // Every page has been copied once when the bytes come.
            migration.rounds(2)?;
            let asleep = fill(&lab, &waiting)?;
            // It was still here.
            migration.rounds(0)?;
            Ok((migration.finish()?, asleep))
        })();
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        let sent = steady.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        let (guest, asleep) = moved?;
        Ok((guest, sent?, asleep))
    })?;
    ensure!(place(&lab)? == "after", "{}", lab.ctl("fdb show lab")?);
    ensure!(sent > 256 << 10, "only {sent} bytes were sent meanwhile");

    guest.run(&format!("kill -CONT $(cat /tmp/pid{ASLEEP})"))?;
    comes_back(asleep, &waiting)?;
    guest.run("rm /tmp/go")?;
    cmd::wait_until("the last transfer", Duration::from_secs(10), || {
        Ok(guest.run("tail -n 1 /tmp/sent")? == "END\n")
    })?;
    let said = guest.run("cat /tmp/sent")?;
    ensure!(!said.contains("FAILED"), "{said}");
    lab.counters_add_up()
}
