//! The command line: what is taken, and what is refused and how.

use clap::error::ErrorKind;

use super::*;
use crate::cli::{FdbVerb, NetworkVerb, PortVerb};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("vswitchctl").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_is_taken() {
    for line in [
        "status",
        "--json status",
        "status --json --run-dir /r",
        "network create lab --type private --mtu 9000",
        "network create lan --type external --uplink eth1 --no-host-nic",
        "network create lan --type internal --host-nic h0 --vlan 10",
        "network list",
        "network show lab",
        "network set lab --mtu 9000 --vlan none",
        "network create lab --type private --ageing 0",
        "network set lab --ageing 1000000",
        "network set lab --name office",
        "network set lab --uplink eth1",
        "port add lab vm1 --tap tap0 --mac-quota 1",
        "port set lab vm1 --mac-quota none",
        "network delete lab",
        "port add lab vm1 --vhost-user /run/vm1.sock",
        "port add lab vm1 --vhost-user /run/vm1.sock --client --queues 4",
        "port add lab vm1 --tap tap0 --vlan trunk:10,20,native=5 --mac-guard 02:00:00:00:00:01 --mtu 9000",
        "port list",
        "port list lab",
        "port show lab vm1",
        "port set lab vm1 --vlan access:10",
        "port set lab vm1 --mac-guard off --mtu none --link down --connect other",
        "port set lab vm1 --disconnect",
        "port remove lab vm1",
        "fdb show lab",
        "fdb add lab 02:00:00:00:00:01 vm1 --vlan 10",
        "fdb delete lab 02:00:00:00:00:01",
        "fdb flush lab --port vm1",
        "stats",
        "stats lab vm1 --watch",
        "vm create web --memory 64M --cpus 4 --boot kernel:/k --initrd /i --cmdline -x --legacy --legacy net=lab,vlan=7",
        "vm create web --synthetic --synthetic net=lab --services shutdown,heartbeat --hyperv",
        "vm create web --no-hyperv --boot-rom none",
        "vm set web --services none",
        "vm set web --no-hyperv",
        "adapter add web synthetic0 --net lab",
        "adapter add web --kind synthetic --mac 02:00:00:00:00:01 --vlan 7",
        "adapter set web synthetic7 --disconnect",
        "adapter remove web legacy3",
        "config export",
        "config export /tmp/vswitch.toml --json",
        "config check vswitch.toml",
        "completion bash",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

/// Lines, the value in each that is refused, and what the refusal says is allowed.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "network create lab --type private --mtu 67",
        "67",
        "68 to 9000",
    ),
    (
        "network create lab --type private --mtu 65536",
        "65536",
        "68 to 9000",
    ),
    (
        "network create lab --type bridge",
        "bridge",
        "external, internal, private",
    ),
    (
        "network create a/b --type private",
        "a/b",
        "1 to 64 characters",
    ),
    (
        "network create lab --type internal --vlan 0",
        "0",
        "1 to 4094",
    ),
    ("network set lab --vlan 4095", "4095", "1 to 4094"),
    (
        "network create lab --type external --uplink abcdefghijklmnop",
        "abcdefghijklmnop",
        "1 to 15",
    ),
    (
        "port add lab vm1 --vhost-user vm1.sock",
        "vm1.sock",
        "absolute path",
    ),
    (
        "port add lab vm1 --vhost-user /s --queues 0",
        "0",
        "1 to 16",
    ),
    (
        "port set lab vm1 --vlan access:4095",
        "access:4095",
        "access:ID",
    ),
    ("port set lab vm1 --mac-guard xx", "xx", "off, or"),
    ("port set lab vm1 --link on", "on", "up, down"),
    (
        "network create lab --type private --ageing 1000001",
        "1000001",
        "0 (never) to 1000000 seconds",
    ),
    ("port set lab vm1 --mac-quota 0", "0", "1 to 1048576"),
    (
        "adapter remove web synthetic8",
        "synthetic8",
        "legacy0 to legacy3, synthetic0 to synthetic7",
    ),
    (
        "adapter add web --kind modern",
        "modern",
        "legacy, synthetic",
    ),
    (
        "fdb add lab ff:ff:ff:ff:ff:ff vm1",
        "ff:ff:ff:ff:ff:ff",
        "one station",
    ),
];

#[test]
fn values_are_refused_in_one_line() {
    for (line, value, allowed) in REFUSED {
        let error = parse(line).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation, "{line}");
        let message = refusal(&error);
        assert!(
            message.contains(value) && message.contains(allowed) && !message.contains('\n'),
            "{line}: {message}"
        );
    }
}

#[test]
fn wrong_usage() {
    for line in [
        "",
        "vm",
        "vm create",
        "drops",
        "network",
        "network create lab",
        "network set lab",
        "port add lab vm1",
        "port add lab vm1 --tap t --vhost-user /s",
        "port add lab vm1 --tap t --queues 2",
        "port add lab vm1 --tap t --client",
        "port add lab vm1 --vhost-user /s --client --server",
        "port set lab vm1",
        "port set lab vm1 --connect a --disconnect",
        "vm set web",
        "vm create web --no-hyperv --synthetic",
        "vm create web --no-hyperv --services all",
        "vm set web --hyperv --no-hyperv",
        "stats --frobnicate",
        "completion tcsh-ish",
    ] {
        let error = parse(line).err().map(|error| error.kind());
        assert!(error.is_some(), "{line}");
    }
    for line in ["stats --watch --json", "completion bash --json"] {
        assert!(check(&parse(line).unwrap()).is_err(), "{line}");
    }
}

#[test]
fn arguments_arrive() {
    let Noun::Network(NetworkVerb::Set { vlan, mtu, .. }) =
        parse("network set lab --vlan none").unwrap().noun
    else {
        panic!("not a set");
    };
    assert!(vlan.unwrap().0.is_none() && mtu.is_none());
    let Noun::Port(PortVerb::Set(set)) = parse("port set lab vm1 --disconnect --mtu none")
        .unwrap()
        .noun
    else {
        panic!("not a set");
    };
    assert!(set.disconnect && set.mtu.unwrap().0.is_none() && set.policy.vlan.is_none());
    let Noun::Fdb(FdbVerb::Flush { port, .. }) = parse("fdb flush lab --port vm1").unwrap().noun
    else {
        panic!("not a flush");
    };
    assert_eq!(port.unwrap().as_str(), "vm1");
}
