//! The API from the outside: what it does, what it refuses, and that a refusal leaves nothing behind.

mod atomic;
mod config;
mod fake_vmm;
mod many;
mod refused;
mod restore;
mod rig;
mod synthetic;
mod uplinks;
mod vm_life;
mod vm_refused;
mod vm_rig;
mod vms;

use refused::{FDB, FDB_REFUSED, NETWORKS_REFUSED, PORTS_REFUSED};
use rig::Rig;
use serde_json::json;

const NETWORKS: &str = "/v1/networks";
const PRIVATE: &str = r#"{"name":"lab","type":"private"}"#;
const EXTERNAL: &str = r#"{"name":"lan","type":"external","uplink":"eth0"}"#;
const INTERNAL: &str = r#"{"name":"int","type":"internal","vlan":10,"mtu":9000}"#;

/// A rig with a private network and two TAP ports in it.
async fn lab() -> Rig {
    let rig = Rig::new();
    rig.ok("POST", NETWORKS, PRIVATE).await;
    rig.ok(
        "POST",
        "/v1/networks/lab/ports",
        r#"{"name":"a","tap":"tap-a"}"#,
    )
    .await;
    rig.ok(
        "POST",
        "/v1/networks/lab/ports",
        r#"{"name":"b","tap":"tap-b","vlan":"access:10"}"#,
    )
    .await;
    rig
}

#[tokio::test]
async fn networks() {
    let rig = Rig::new();
    let lan = rig.ok("POST", NETWORKS, EXTERNAL).await;
    assert_eq!(
        lan,
        json!({"name":"lan","type":"external","uplink":"eth0","host_nic":"vsw-lan","vlan":null,"mtu":1500,"ageing":300,"ports":2})
    );
    let int = rig.ok("POST", NETWORKS, INTERNAL).await;
    assert_eq!(
        (&int["vlan"], &int["host_nic"]),
        (&json!(10), &json!("vsw-int"))
    );
    rig.ok(
        "POST",
        NETWORKS,
        r#"{"name":"nohost","type":"external","uplink":"eth1","no_host_nic":true}"#,
    )
    .await;
    let list = rig.ok("GET", NETWORKS, "").await;
    assert_eq!(list["networks"].as_array().unwrap().len(), 3);
    // The uplink's addresses live on the host NIC now.
    assert_eq!(
        rig.world().interfaces["vsw-lan"],
        ["192.0.2.1/24", "2001:db8::1/64"]
    );
    assert_eq!(rig.world().interfaces["eth0"], [""; 0]);
    let ports = rig.ok("GET", "/v1/networks/lan/ports", "").await;
    assert_eq!(ports["ports"][0]["port"], "host");
    assert_eq!(ports["ports"][1]["vlan"], "trunk:all,native=untagged");
    let int = rig
        .ok("PATCH", "/v1/networks/int", r#"{"mtu":1400,"vlan":null}"#)
        .await;
    assert_eq!((&int["vlan"], &int["mtu"]), (&json!(null), &json!(1400)));
    assert_eq!(rig.world().open["vsw-int"].0, 1400);
    for name in ["lan", "int", "nohost"] {
        rig.ok("DELETE", &format!("{NETWORKS}/{name}"), "").await;
    }
    let world = rig.world();
    assert!(
        world.open.is_empty() && world.interfaces.len() == 2,
        "{world:?}"
    );
    assert_eq!(world.interfaces["eth0"], ["192.0.2.1/24", "2001:db8::1/64"]);
    assert_eq!(rig.rows(), 0);
}

#[tokio::test]
async fn networks_refused() {
    let rig = lab().await;
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    rig.change_world(|world| {
        let addresses = vec!["192.0.2.2/24".into()];
        world.interfaces.insert("eth2".into(), addresses);
    });
    for &(method, path, body, status, why) in NETWORKS_REFUSED {
        rig.refused((method, path, body), status, why).await;
    }
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(5 << 20));
    rig.refused(("POST", NETWORKS, &long), 413, "at most 4194304 bytes")
        .await;
}

#[tokio::test]
async fn ports() {
    let rig = lab().await;
    let port = rig.ok("GET", "/v1/networks/lab/ports/b", "").await;
    assert_eq!(
        port,
        json!({"network":"lab","port":"b","kind":"tap","interface":"tap-b","vlan":"access:10","mac_guard":"off","mac_quota":131072,
               "mtu":1500,"link":"up","connected":true,"state":"up","detail":null})
    );
    let body = r#"{"vlan":"trunk:1-9","mac_guard":"02:00:00:00:00:01","mtu":9000,"link":"down"}"#;
    let port = rig.ok("PATCH", "/v1/networks/lab/ports/b", body).await;
    assert_eq!(
        (&port["vlan"], &port["mac_guard"]),
        (&json!("trunk:1-9"), &json!("02:00:00:00:00:01"))
    );
    assert_eq!(rig.world().open["tap-b"], (9000, vswitch::api::Link::Down));
    // Its own MTU stands when the network's changes; then it takes the network's again.
    rig.ok("PATCH", "/v1/networks/lab", r#"{"mtu":1400}"#).await;
    assert_eq!(
        (rig.world().open["tap-a"].0, rig.world().open["tap-b"].0),
        (1400, 9000)
    );
    rig.ok("PATCH", "/v1/networks/lab/ports/b", r#"{"mtu":null}"#)
        .await;
    assert_eq!(rig.world().open["tap-b"].0, 1400);
    let port = rig
        .ok("PATCH", "/v1/networks/lab/ports/b", r#"{"network":null}"#)
        .await;
    assert_eq!(
        (&port["network"], &port["connected"]),
        (&json!("lab"), &json!(false))
    );
    let port = rig
        .ok("PATCH", "/v1/networks/lab/ports/b", r#"{"network":"lab"}"#)
        .await;
    assert_eq!(port["connected"], true);
    rig.ok(
        "POST",
        NETWORKS,
        r#"{"name":"other","type":"private","mtu":9000}"#,
    )
    .await;
    let port = rig
        .ok(
            "PATCH",
            "/v1/networks/lab/ports/b",
            r#"{"network":"other"}"#,
        )
        .await;
    assert_eq!(
        (&port["network"], &port["mtu"]),
        (&json!("other"), &json!(9000))
    );
    rig.refused(
        ("GET", "/v1/networks/lab/ports/b", ""),
        404,
        "no port 'b' in network 'lab'",
    )
    .await;
    let status = rig.ok("GET", "/v1/status", "").await;
    assert_eq!(status["ports"].as_array().unwrap().len(), 2);
    assert_eq!(status["workers"][0]["core"], 0);
    let stats = rig.ok("GET", "/v1/stats?network=other&port=b", "").await;
    assert_eq!(
        (
            &stats["ports"][0]["port"],
            &stats["ports"][0]["taken_frames"]
        ),
        (&json!("b"), &json!(0))
    );
    rig.ok("DELETE", "/v1/networks/other/ports/b", "").await;
    rig.ok("DELETE", "/v1/networks/other", "").await;
    assert!(!rig.world().open.contains_key("tap-b"));
}

#[tokio::test]
async fn a_disconnected_port_shows_its_other_end_no_link() {
    let rig = lab().await;
    let port = "/v1/networks/lab/ports/b";
    rig.ok("PATCH", port, r#"{"network":null}"#).await;
    assert_eq!(rig.world().open["tap-b"].1, vswitch::api::Link::Down);
    rig.ok("PATCH", port, r#"{"network":"lab"}"#).await;
    assert_eq!(rig.world().open["tap-b"].1, vswitch::api::Link::Up);
}

#[tokio::test]
async fn ports_refused() {
    let rig = lab().await;
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    rig.ok(
        "POST",
        "/v1/networks/lan/ports",
        r#"{"name":"a","tap":"tap-lan-a"}"#,
    )
    .await;
    for &(method, path, body, status, why) in PORTS_REFUSED {
        rig.refused((method, path, body), status, why).await;
    }
}

#[tokio::test]
async fn fdb() {
    let rig = lab().await;
    let fdb = FDB;
    rig.ok("POST", fdb, r#"{"mac":"02:00:00:00:00:01","port":"a"}"#)
        .await;
    rig.ok(
        "POST",
        fdb,
        r#"{"mac":"02:00:00:00:00:01","port":"b","vlan":10}"#,
    )
    .await;
    let pinned = json!({"entries":[
        {"mac":"02:00:00:00:00:01","vlan":null,"port":"a","static":true,"age_seconds":null},
        {"mac":"02:00:00:00:00:01","vlan":10,"port":"b","static":true,"age_seconds":null}]});
    assert_eq!(rig.ok("GET", fdb, "").await, pinned);
    // Flushing is for what was learned; disconnecting and back keeps what was set.
    rig.ok("DELETE", fdb, "").await;
    rig.ok("DELETE", &format!("{fdb}?port=b"), "").await;
    rig.ok("PATCH", "/v1/networks/lab/ports/b", r#"{"network":null}"#)
        .await;
    assert_eq!(
        rig.ok("GET", fdb, "").await["entries"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    rig.ok("PATCH", "/v1/networks/lab/ports/b", r#"{"network":"lab"}"#)
        .await;
    assert_eq!(rig.ok("GET", fdb, "").await, pinned);
    for &(method, path, body, status, why) in FDB_REFUSED {
        rig.refused((method, path, body), status, why).await;
    }
    rig.ok(
        "DELETE",
        "/v1/networks/lab/fdb/02:00:00:00:00:01?vlan=10",
        "",
    )
    .await;
    // A static entry goes with its port.
    rig.ok("DELETE", "/v1/networks/lab/ports/a", "").await;
    assert_eq!(rig.ok("GET", fdb, "").await, json!({"entries":[]}));
    assert_eq!(rig.rows(), 2);
}

#[tokio::test]
async fn callers_without_permission_are_refused() {
    let rig = Rig::new();
    for (ids, status) in [
        (Some((0, 0)), 200),
        (Some((nix::unistd::geteuid().as_raw(), 65_534)), 200),
        (Some((65_534, 60_001)), 200),
        (Some((65_534, 65_534)), 403),
        (None, 403),
    ] {
        for path in ["/v1/status", "/metrics", "/openapi.json"] {
            let (found, body) = rig.bytes(ids, "GET", path, "").await;
            assert_eq!(found, status, "{ids:?} {path}");
            if status == 403 {
                assert!(
                    String::from_utf8(body)
                        .unwrap()
                        .contains("members of group 60001")
                );
            }
        }
    }
    let (status, _) = rig
        .call_as(Some((65_534, 65_534)), "POST", NETWORKS, PRIVATE)
        .await;
    assert_eq!((status, rig.rows()), (403, 0));
}

#[tokio::test]
async fn the_document_names_every_verb_and_its_types() {
    let rig = Rig::new();
    let document = rig.ok("GET", "/openapi.json", "").await;
    for (path, verbs) in [
        ("/v1/status", vec!["get"]),
        ("/v1/networks", vec!["get", "post"]),
        ("/v1/networks/{network}", vec!["get", "patch", "delete"]),
        ("/v1/ports", vec!["get"]),
        ("/v1/networks/{network}/ports", vec!["get", "post"]),
        (
            "/v1/networks/{network}/ports/{port}",
            vec!["get", "patch", "delete"],
        ),
        ("/v1/networks/{network}/fdb", vec!["get", "post", "delete"]),
        ("/v1/networks/{network}/fdb/{mac}", vec!["delete"]),
        ("/v1/stats", vec!["get"]),
        ("/v1/vms", vec!["get", "post"]),
        ("/v1/vms/{vm}", vec!["get", "patch", "delete"]),
        ("/v1/vms/{vm}/action", vec!["post"]),
        ("/v1/vms/{vm}/console", vec!["get"]),
        ("/v1/vms/{vm}/console/log", vec!["get"]),
        ("/v1/vms/{vm}/adapters", vec!["post"]),
        ("/v1/vms/{vm}/adapters/{adapter}", vec!["patch", "delete"]),
    ] {
        for verb in verbs {
            assert!(document["paths"][path][verb].is_object(), "{verb} {path}");
        }
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas["NetworkName"]["type"], "string");
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn metrics() {
    let rig = lab().await;
    let (status, body) = rig.bytes(Some((0, 0)), "GET", "/metrics", "").await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    for line in [
        "vswitch_networks 1",
        "vswitch_worker_ports{core=\"0\"} 2",
        "vswitch_port_up{network=\"lab\",port=\"a\"} 1",
        "vswitch_port_frames_total{network=\"lab\",port=\"b\",direction=\"rx\"} 0",
        "vswitch_port_taken_frames_total{network=\"lab\",port=\"a\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            line.rsplit_once(' ').unwrap().1.parse::<u64>().is_ok(),
            "{line}"
        );
    }
}
