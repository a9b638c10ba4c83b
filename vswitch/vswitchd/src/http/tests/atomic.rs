//! A change that fails at any step leaves the switch, the host and the store as they were.

use serde_json::Value;

use super::rig::Rig;
use super::{EXTERNAL, NETWORKS, lab};

/// Everything that can be seen from outside.
async fn picture(rig: &Rig) -> (Value, Value, super::rig::World, i64) {
    let mut world = rig.world();
    world.broken.clear();
    world.addresses_stuck = false;
    world.uplink_mtus.clear();
    let networks = rig.ok("GET", NETWORKS, "").await;
    (
        networks,
        rig.ok("GET", "/v1/ports", "").await,
        world,
        rig.rows(),
    )
}

/// Refuses `call` after `sabotage`, and finds everything as before.
async fn fails_cleanly(
    rig: &Rig,
    sabotage: impl FnOnce(&Rig),
    call: (&str, &str, &str),
    why: &str,
) {
    let before = picture(rig).await;
    sabotage(rig);
    rig.refused(call, 500, why).await;
    assert_eq!(picture(rig).await, before);
}

fn break_it(target: &'static str) -> impl FnOnce(&Rig) {
    move |rig| {
        rig.change_world(|world| world.broken.extend([target.to_owned()]));
    }
}

#[tokio::test]
async fn a_network_whose_ports_do_not_open() {
    for target in ["eth0", "vsw-lan"] {
        let rig = lab().await;
        let why = format!("'{target}' is broken");
        fails_cleanly(&rig, break_it(target), ("POST", NETWORKS, EXTERNAL), &why).await;
        rig.change_world(|world| world.broken.clear());
        rig.ok("POST", NETWORKS, EXTERNAL).await;
    }
}

#[tokio::test]
async fn a_network_whose_addresses_do_not_move() {
    let rig = lab().await;
    let stuck = |rig: &Rig| rig.change_world(|world| world.addresses_stuck = true);
    fails_cleanly(
        &rig,
        stuck,
        ("POST", NETWORKS, EXTERNAL),
        "cannot move the addresses of 'eth0'",
    )
    .await;
    rig.change_world(|world| world.addresses_stuck = false);
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    fails_cleanly(
        &rig,
        stuck,
        ("DELETE", "/v1/networks/lan", ""),
        "cannot get its addresses back",
    )
    .await;
    rig.change_world(|world| world.addresses_stuck = false);
    rig.ok("DELETE", "/v1/networks/lan", "").await;
}

const PORT: &str = "/v1/networks/lab/ports/a";

/// Statements that are made to spoil their transaction, and the calls that run them.
const SPOILT: &[(&str, (&str, &str, &str))] = &[
    ("INSERT ON network", ("POST", NETWORKS, EXTERNAL)),
    ("UPDATE ON host_change", ("POST", NETWORKS, EXTERNAL)),
    ("DELETE ON network", ("DELETE", "/v1/networks/int", "")),
    ("DELETE ON network", ("DELETE", "/v1/networks/ext", "")),
    (
        "UPDATE ON network",
        ("PATCH", "/v1/networks/int", r#"{"mtu":1400,"vlan":null}"#),
    ),
    (
        "UPDATE ON network",
        ("PATCH", "/v1/networks/lab", r#"{"name":"office"}"#),
    ),
    (
        "UPDATE ON network",
        (
            "PATCH",
            "/v1/networks/ext",
            r#"{"uplink":"eth0","mtu":1400}"#,
        ),
    ),
    (
        "UPDATE ON host_change",
        ("PATCH", "/v1/networks/ext", r#"{"uplink":"eth0"}"#),
    ),
    (
        "INSERT ON loose_uplink",
        ("PATCH", "/v1/networks/ext", r#"{"uplink":"eth0"}"#),
    ),
    (
        "INSERT ON port",
        (
            "POST",
            "/v1/networks/lab/ports",
            r#"{"name":"c","tap":"tap-c"}"#,
        ),
    ),
    ("DELETE ON port", ("DELETE", PORT, "")),
    (
        "UPDATE ON port",
        (
            "PATCH",
            PORT,
            r#"{"mtu":1400,"vlan":"access:5","link":"down"}"#,
        ),
    ),
    ("UPDATE ON port", ("PATCH", PORT, r#"{"network":null}"#)),
    (
        "DELETE ON port",
        ("PATCH", PORT, r#"{"network":"int","mtu":null}"#),
    ),
    (
        "INSERT ON static_entry",
        (
            "POST",
            "/v1/networks/lab/fdb",
            r#"{"mac":"02:00:00:00:00:07","port":"a"}"#,
        ),
    ),
    (
        "DELETE ON static_entry",
        ("DELETE", "/v1/networks/lab/fdb/02:00:00:00:00:01", ""),
    ),
];

#[tokio::test]
async fn changes_that_cannot_be_committed() {
    let why = "FOREIGN KEY";
    for &(what, call) in SPOILT {
        let rig = lab().await;
        rig.change_world(|world| {
            drop(
                world
                    .interfaces
                    .insert("eth2".into(), vec!["198.51.100.1/24".into()]),
            )
        });
        rig.ok("POST", NETWORKS, super::INTERNAL).await;
        rig.ok(
            "POST",
            NETWORKS,
            r#"{"name":"ext","type":"external","uplink":"eth2"}"#,
        )
        .await;
        rig.ok(
            "POST",
            "/v1/networks/lab/fdb",
            r#"{"mac":"02:00:00:00:00:01","port":"a"}"#,
        )
        .await;
        let fdb = rig.ok("GET", "/v1/networks/lab/fdb", "").await;
        fails_cleanly(&rig, |rig| rig.spoil_commit(what), call, why).await;
        assert_eq!(
            rig.ok("GET", "/v1/networks/lab/fdb", "").await,
            fdb,
            "{what}"
        );
    }
}

#[tokio::test]
async fn settings_that_the_host_refuses() {
    let rig = lab().await;
    let call = ("PATCH", "/v1/networks/lab", r#"{"mtu":9000}"#);
    // Port a is told before b refuses, and must be told again.
    fails_cleanly(&rig, break_it("tap-b"), call, "'tap-b' is broken").await;
    let call = (
        "PATCH",
        "/v1/networks/lab/ports/b",
        r#"{"vlan":"none","mtu":9000}"#,
    );
    fails_cleanly(&rig, break_it("tap-b"), call, "cannot set MTU 9000").await;
    let call = ("PATCH", "/v1/networks/lab/ports/b", r#"{"link":"down"}"#);
    fails_cleanly(&rig, break_it("tap-b"), call, "cannot set link down").await;
}

#[tokio::test]
async fn a_port_that_does_not_open() {
    let rig = lab().await;
    let call = (
        "POST",
        "/v1/networks/lab/ports",
        r#"{"name":"c","tap":"tap-c"}"#,
    );
    fails_cleanly(&rig, break_it("tap-c"), call, "'tap-c' is broken").await;
}
