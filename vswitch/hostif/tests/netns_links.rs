//! Interfaces by rtnetlink. Needs root and `ip`, which is the independent witness.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support"
)]

mod common;

use std::time::Duration;

use common::Netns;
use hostif::IfName;
use hostif::info::{LinkInfo, driver, rx_queues};
use hostif::links::{LinkEvent, Links, LinksError, Moved};

/// Runs asynchronous code on a thread in the namespace.
fn run<R: Send>(netns: &Netns, body: impl AsyncFnOnce() -> R + Send) -> R {
    netns.enter(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(body())
    })
}

fn name(name: &str) -> IfName {
    name.parse().unwrap()
}

/// A namespace whose `va` has addresses and routes of all sorts, and a `vh` to move them to.
fn host() -> (Netns, Netns) {
    let (host, lan) = Netns::pair(1, 1500);
    host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0");
    host.run("ip link add name vh type veth peer name vp");
    host.run("ip link set vh up");
    host.run("ip link set vp up");
    for command in [
        "addr add 192.0.2.10/24 dev va label va:web",
        "addr add 192.0.2.11/24 brd 192.0.2.255 dev va valid_lft 5000 preferred_lft 4000",
        "addr add 10.1.0.1 peer 10.1.0.2/32 dev va",
        "addr add 169.254.7.7/16 dev va scope link noprefixroute",
        "addr add 2001:db8::10/64 dev va",
        "addr add 2001:db8:1::10/64 dev va valid_lft 6000 preferred_lft 0 noprefixroute",
        "route add default via 192.0.2.1 metric 100 mtu 1400 advmss 1300",
        "route add default via 192.0.2.2 metric 200 proto dhcp",
        "route add 198.51.100.0/24 via 192.0.2.3 table 77 src 192.0.2.11",
        "route add 203.0.113.0/24 dev va scope link",
        "route add 198.18.0.0/15 via 203.0.113.5 dev va",
        "route add 100.64.0.0/10 via 172.31.0.1 dev va onlink",
        "route add 10.77.0.0/16 nexthop via 192.0.2.4 dev va weight 2 nexthop via 192.0.2.5 dev va",
        "route add 10.78.0.0/16 dev vp",
        "route add blackhole 10.79.0.0/16",
        "-6 route add default via 2001:db8::1 dev va metric 512 pref high",
        "-6 route add 2001:db8:7::/48 via fe80::1 dev va table 1000",
        "-6 route add 2001:db8:1::/64 dev va",
        "-6 route add 2001:db8:8::/48 via 2001:db8::1 dev va expires 5000",
    ] {
        host.run(&format!("ip {command}"));
    }
    (host, lan)
}

/// Addresses of `dev` and all routes of users and daemons, as text without anything that time changes.
fn snapshot(netns: &Netns, dev: &str) -> (Vec<String>, Vec<String>) {
    let address = |pair: &[&str]| {
        let named = pair[0]
            .replace(&format!(" {dev}"), " IF")
            .replace(" nodad", "");
        timeless(&format!("{named} {}", pair[1]))
    };
    let addresses = netns.run(&format!("ip addr show dev {dev}"));
    let lines = addresses.lines().map(str::trim);
    let lines: Vec<&str> = lines
        .filter(|l| l.starts_with("inet") || l.starts_with("valid_lft"))
        .collect();
    let pairs = lines.chunks(2).filter(|pair| !pair[0].contains("fe80"));
    let addresses = pairs.map(address).collect();
    let routes = netns.run("ip route show table all").replace("\n\t", " ");
    let made = routes.lines().filter(|l| !l.contains("proto kernel"));
    let mut routes: Vec<String> = made.map(timeless).collect();
    routes.sort();
    (addresses, routes)
}

/// Seconds are given or taken some hundred.
fn timeless(line: &str) -> String {
    let word = |word: &str| match word.strip_suffix("sec").map(str::parse::<u32>) {
        Some(Ok(seconds)) => format!("{}00sec", (seconds + 50) / 100),
        _ => word.to_owned(),
    };
    line.split_whitespace()
        .map(word)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn addresses_and_routes_move_and_come_back() {
    let (host, _lan) = host();
    let before = snapshot(&host, "va");
    assert_eq!((before.0.len(), before.1.len()), (6, 13), "{before:#?}");
    let other = |routes: &[String]| {
        routes
            .iter()
            .map(|r| r.replace("dev va", "dev vh"))
            .collect::<Vec<_>>()
    };
    run(&host, async || {
        let (links, _events) = Links::connect().unwrap();
        let moved = links.take_over(&name("va"), &name("vh")).await.unwrap();
        assert_eq!((moved.addresses.len(), moved.routes.len()), (6, 11));
        let (addresses, routes) = snapshot(&host, "vh");
        assert_eq!(addresses, before.0);
        assert_eq!(routes, other(&before.1));
        assert!(snapshot(&host, "va").0.is_empty());
        assert!(
            host.run("ip -6 addr show dev va").contains("fe80"),
            "the link-local address stays"
        );

        let json = serde_json::to_string(&moved).unwrap();
        let moved: Moved = serde_json::from_str(&json).unwrap();
        links.give_back(&moved).await.unwrap();
        assert_eq!(snapshot(&host, "va"), before);
        assert!(snapshot(&host, "vh").0.is_empty());
        links.give_back(&moved).await.unwrap();
        assert_eq!(
            snapshot(&host, "va"),
            before,
            "what is back already is no error"
        );
    });
}

#[test]
fn they_come_back_when_the_other_interface_is_gone() {
    let (host, _lan) = host();
    let before = snapshot(&host, "va");
    run(&host, async || {
        let (links, _events) = Links::connect().unwrap();
        let moved = links.take_over(&name("va"), &name("vh")).await.unwrap();
        host.run("ip link del vh");
        // With it went its other end, and a route by that.
        links.give_back(&moved).await.unwrap();
        let (addresses, mut routes) = snapshot(&host, "va");
        routes.push("10.78.0.0/16 dev vp scope link".to_owned());
        routes.sort();
        assert_eq!((addresses, routes), before);
    });
}

#[test]
fn a_failure_leaves_everything_as_it_was() {
    let (host, _lan) = host();
    host.run("ip link set vh down");
    let before = snapshot(&host, "va");
    run(&host, async || {
        let (links, _events) = Links::connect().unwrap();
        let error = links.take_over(&name("va"), &name("vh")).await.unwrap_err();
        let LinksError::Refused {
            what,
            not_restored_list,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert!(what.starts_with("adding route"), "{error}");
        assert_eq!(not_restored_list, &[""; 0]);
        assert_eq!(snapshot(&host, "va"), before);
        assert!(snapshot(&host, "vh").0.is_empty());
    });
}

#[test]
fn what_can_not_be_moved_is_refused_with_the_reason() {
    let (host, _lan) = host();
    host.run("ip nexthop add id 1 via 192.0.2.9 dev va");
    host.run("ip route add 10.80.0.0/16 nhid 1");
    let before = snapshot(&host, "va");
    run(&host, async || {
        let (links, _events) = Links::connect().unwrap();
        let error = links.take_over(&name("va"), &name("vh")).await.unwrap_err();
        assert!(
            matches!(&error, LinksError::NexthopObject(route) if route == "10.80.0.0/16"),
            "{error}"
        );
        for (from, to, missing) in [("va", "nope", "nope"), ("nope", "va", "nope")] {
            let error = links.take_over(&name(from), &name(to)).await.unwrap_err();
            assert!(
                matches!(&error, LinksError::NotFound(n) if n.as_str() == missing),
                "{error}"
            );
        }
        let mut broken = Moved {
            from: name("va"),
            to: name("vh"),
            addresses: Vec::new(),
            routes: Vec::new(),
        };
        broken.routes.push(hostif::links::Saved {
            text: "default".to_owned(),
            message: vec![1, 2, 3],
        });
        assert!(matches!(
            links.give_back(&broken).await,
            Err(LinksError::Record(_))
        ));
        assert_eq!(snapshot(&host, "va"), before);
    });
}

#[test]
fn links_are_set_and_their_changes_seen() {
    let (host, lan) = Netns::pair(2, 1500);
    run(&host, async || {
        let (links, mut events) = Links::connect().unwrap();
        let mut until = async |done: &dyn Fn(&LinkEvent) -> bool| {
            let seek = async { while !done(&events.next().await.unwrap()) {} };
            tokio::time::timeout(Duration::from_secs(5), seek)
                .await
                .unwrap();
        };
        links.set_mtu(&name("va"), 9000).await.unwrap();
        assert_eq!(LinkInfo::read(&name("va")).unwrap().unwrap().mtu, 9000);
        until(&|e| matches!(e, LinkEvent::Changed(l) if l.name == "va" && l.mtu == 9000)).await;
        let carrier = |up| move |e: &LinkEvent| matches!(e, LinkEvent::Changed(l) if l.name == "va" && l.carrier == up);
        lan.run("ip link set vb down");
        until(&carrier(false)).await;
        lan.run("ip link set vb up");
        until(&carrier(true)).await;
        links.set_up(&name("va"), false).await.unwrap();
        assert!(!LinkInfo::read(&name("va")).unwrap().unwrap().up);
        links.set_up(&name("va"), true).await.unwrap();
        assert!(LinkInfo::read(&name("va")).unwrap().unwrap().up);
        host.run("ip link del va");
        until(&|e| matches!(e, LinkEvent::Removed { name, .. } if name == "va")).await;

        assert!(matches!(
            links.set_mtu(&name("nope"), 1500).await,
            Err(LinksError::NotFound(_))
        ));
        let error = links
            .set_mtu(&name("lo"), 1)
            .await
            .and(links.set_mtu(&name("lo"), u32::MAX).await)
            .unwrap_err();
        assert!(
            matches!(&error, LinksError::Refused { what, .. } if what.contains("4294967295")),
            "{error}"
        );
    });
}

#[test]
fn an_interface_says_what_it_is() {
    let (host, _lan) = Netns::pair(2, 1400);
    host.run("ip link add name sw0 type bridge");
    host.run("ip link set va master sw0");
    host.run("ip link set sw0 up");
    host.enter(|| {
        let info = |n: &str| LinkInfo::read(&name(n)).unwrap().unwrap();
        let (va, br) = (info("va"), info("sw0"));
        assert_eq!(
            (va.mtu, va.mac, va.up, va.carrier),
            (1400, Some([2, 0, 0, 0, 0, 0xa]), true, true)
        );
        assert_eq!(
            (va.kind.as_deref(), va.master, va.oper_state.as_str()),
            (Some("veth"), Some(br.index), "up")
        );
        assert_eq!((br.kind.as_deref(), br.master), (Some("bridge"), None));
        let lo = info("lo");
        assert_eq!((lo.kind, lo.name.as_str()), (None, "lo"));
        assert_eq!(LinkInfo::read(&name("nope")).unwrap(), None);
        assert_eq!(driver(&name("va")).unwrap(), "veth");
        assert!(driver(&name("nope")).is_err());
        assert_eq!(rx_queues(&name("va")).unwrap(), 2);
        assert!(rx_queues(&name("nope")).is_err());
    });
}
