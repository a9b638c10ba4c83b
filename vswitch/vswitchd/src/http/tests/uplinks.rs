//! An uplink is changed for another under traffic, as a whole or not at all.

use serde_json::json;

use super::rig::Rig;
use super::{EXTERNAL, NETWORKS};

const LAN: &str = "/v1/networks/lan";
const WITHOUT: &str = r#"{"name":"bare","type":"external","uplink":"eth1","no_host_nic":true}"#;

/// `lan` on eth0, and eth2 with an address of its own.
async fn on_eth0() -> Rig {
    let rig = Rig::new();
    rig.change_world(|world| {
        let addresses = vec!["198.51.100.1/24".to_owned()];
        world.interfaces.insert("eth2".into(), addresses);
        world.uplink_mtus.insert("eth2".into(), 9000);
    });
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    rig
}

#[tokio::test]
async fn the_host_nic_keeps_its_addresses_and_gets_those_of_the_new_uplink() {
    let rig = on_eth0().await;
    let entry = r#"{"mac":"02:00:00:00:00:01","port":"uplink"}"#;
    rig.ok("POST", "/v1/networks/lan/fdb", entry).await;
    let mac = rig.world().macs.get("vsw-lan").copied();
    let changed = rig.ok("PATCH", LAN, r#"{"uplink":"eth2"}"#).await;
    assert_eq!(changed["uplink"], "eth2");
    let all = ["192.0.2.1/24", "2001:db8::1/64", "198.51.100.1/24"];
    // Twice: as it is now, and as it is stored.
    let mut rig = rig;
    for _ in 0..2 {
        let world = rig.world();
        assert_eq!(world.interfaces["vsw-lan"], all);
        assert!(world.interfaces["eth0"].is_empty() && world.interfaces["eth2"].is_empty());
        assert!(world.open.contains_key("eth2") && !world.open.contains_key("eth0"));
        assert_eq!(world.quiet.iter().collect::<Vec<_>>(), ["eth2"]);
        assert_eq!(world.uplink_mtus["eth0"], 1501);
        assert_eq!(world.macs.get("vsw-lan").copied(), mac);
        let port = rig.ok("GET", "/v1/networks/lan/ports/uplink", "").await;
        assert_eq!(
            (&port["interface"], &port["state"]),
            (&json!("eth2"), &json!("up"))
        );
        let fdb = rig.ok("GET", "/v1/networks/lan/fdb", "").await;
        assert_eq!(fdb["entries"][0]["port"], "uplink");
        let document = rig.ok("GET", "/v1/config", "").await;
        assert_eq!(document["network"][0]["uplink"], "eth2");
        rig = rig.restart(false, |_| {}).await;
    }
    // The one that it has already is no change.
    rig.ok("PATCH", LAN, r#"{"uplink":"eth2"}"#).await;
    rig.ok("DELETE", LAN, "").await;
    let world = rig.world();
    assert_eq!(world.interfaces["eth2"], all);
    assert_eq!(world.uplink_mtus["eth2"], 9000);
    assert!(world.quiet.is_empty());
    assert_eq!(rig.rows(), 0);
}

#[tokio::test]
async fn what_is_refused_leaves_the_old_uplink() {
    let rig = on_eth0().await;
    rig.ok("POST", NETWORKS, WITHOUT).await;
    rig.ok("POST", NETWORKS, r#"{"name":"lab","type":"private"}"#)
        .await;
    let cases = [
        (LAN, "eth9", 409, "there is no interface 'eth9'"),
        (
            LAN,
            "eth1",
            409,
            "in use by port 'uplink' of network 'bare'",
        ),
        (
            LAN,
            "vsw-lan",
            409,
            "in use by port 'host' of network 'lan'",
        ),
        (
            "/v1/networks/bare",
            "eth2",
            409,
            "'eth2' has addresses, 198.51.100.1/24",
        ),
        (
            "/v1/networks/lab",
            "eth2",
            400,
            "only external networks have one",
        ),
    ];
    let before = (rig.world(), rig.rows());
    for (path, uplink, status, why) in cases {
        let body = format!(r#"{{"uplink":"{uplink}","mtu":1400}}"#);
        rig.refused(("PATCH", path, &body), status, why).await;
        assert_eq!((rig.world(), rig.rows()), before, "{uplink}");
    }
}

#[tokio::test]
async fn a_new_uplink_that_fails_leaves_the_old_one() {
    for stuck in [false, true] {
        let rig = on_eth0().await;
        let before = (rig.world(), rig.rows());
        rig.change_world(|world| {
            world.addresses_stuck = stuck;
            if !stuck {
                world.broken.extend(["eth2".to_owned()]);
            }
        });
        let why = if stuck {
            "cannot move the addresses of 'eth2'"
        } else {
            "'eth2' is broken"
        };
        let call = ("PATCH", LAN, r#"{"uplink":"eth2","mtu":1400}"#);
        rig.refused(call, 500, why).await;
        rig.change_world(|world| {
            world.addresses_stuck = false;
            world.broken.clear();
        });
        assert_eq!((rig.world(), rig.rows()), before);
        rig.ok(call.0, call.1, call.2).await;
    }
}

#[tokio::test]
async fn a_change_that_sigkill_cut_short_is_undone_or_finished() {
    // Before the commit: the new uplink is noted, bound and bereft of its addresses, and the network has the old one.
    let moved = r#"'["eth2","vsw-lan",["198.51.100.1/24"]]'"#;
    let note = format!("INSERT INTO loose_uplink VALUES ('eth2', 9000, 'false', {moved})");
    let rig = on_eth0().await;
    let before = rig.world();
    rig.sql(&note);
    let rig = rig
        .restart(false, |world| {
            let addresses = std::mem::take(world.interfaces.get_mut("eth2").unwrap());
            let nic = world.interfaces.get_mut("vsw-lan").unwrap();
            nic.extend(addresses);
            world.quiet.insert("eth2".into());
            world.uplink_mtus.insert("eth2".into(), 1500);
        })
        .await;
    assert_eq!(rig.world(), before);
    // After it: the old uplink is noted, and not yet what it was before.
    rig.ok("PATCH", LAN, r#"{"uplink":"eth2"}"#).await;
    let after = rig.world();
    rig.sql("INSERT INTO loose_uplink VALUES ('eth0', 1501, 'false', NULL)");
    let rig = rig
        .restart(false, |world| {
            world.quiet.insert("eth0".into());
            world.uplink_mtus.insert("eth0".into(), 1500);
        })
        .await;
    assert_eq!(rig.world(), after);
    rig.ok("DELETE", LAN, "").await;
    assert_eq!(rig.rows(), 0);
}

#[tokio::test]
async fn the_stack_leaves_an_uplink_without_a_host_nic_alone() {
    let rig = Rig::new();
    rig.ok("POST", NETWORKS, WITHOUT).await;
    assert!(rig.world().quiet.contains("eth1"));
    // A card that was taken out and put in again has the settings of a new one.
    let rig = rig
        .restart(true, |world| {
            world.quiet.clear();
        })
        .await;
    assert!(rig.world().quiet.contains("eth1"));
    rig.ok("DELETE", "/v1/networks/bare", "").await;
    assert!(rig.world().quiet.is_empty());
    assert_eq!(rig.rows(), 0);
}
