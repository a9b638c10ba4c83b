//! What comes back after a restart, and what a killed vswitchd leaves behind.

use serde_json::json;

use super::rig::Rig;
use super::{EXTERNAL, INTERNAL, NETWORKS, lab};
use crate::store::Store;

#[tokio::test]
async fn everything_comes_back() {
    for orderly in [true, false] {
        let rig = lab().await;
        rig.ok("POST", NETWORKS, EXTERNAL).await;
        rig.ok("POST", NETWORKS, INTERNAL).await;
        rig.ok(
            "POST",
            "/v1/networks/lab/fdb",
            r#"{"mac":"02:00:00:00:00:01","port":"b","vlan":10}"#,
        )
        .await;
        rig.ok(
            "PATCH",
            "/v1/networks/lab/ports/a",
            r#"{"network":null,"mac_guard":"02:00:00:00:00:01","mtu":9000,"mac_quota":7}"#,
        )
        .await;
        rig.ok("PATCH", "/v1/networks/lab", r#"{"ageing":0}"#).await;
        let (networks, ports) = (
            rig.ok("GET", NETWORKS, "").await,
            rig.ok("GET", "/v1/ports", "").await,
        );
        let fdb = rig.ok("GET", "/v1/networks/lab/fdb", "").await;
        let world = rig.world();
        let rig = rig.restart(orderly, |_| {}).await;
        assert_eq!(rig.ok("GET", NETWORKS, "").await, networks);
        assert_eq!(rig.ok("GET", "/v1/ports", "").await, ports);
        assert_eq!(rig.ok("GET", "/v1/networks/lab/fdb", "").await, fdb);
        assert_eq!(rig.world(), world);
        // The addresses that were moved before the restart are given back after it.
        rig.ok("DELETE", "/v1/networks/lan", "").await;
        assert_eq!(
            rig.world().interfaces["eth0"],
            ["192.0.2.1/24", "2001:db8::1/64"]
        );
        assert_eq!(rig.world().uplink_mtus["eth0"], 1501);
    }
}

#[tokio::test]
async fn a_renamed_network_keeps_everything() {
    let rig = lab().await;
    let pinned = r#"{"mac":"02:00:00:00:00:01","port":"b","vlan":10}"#;
    rig.ok("POST", "/v1/networks/lab/fdb", pinned).await;
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    let fdb = rig.ok("GET", "/v1/networks/lab/fdb", "").await;
    let world = rig.world();
    let patch = r#"{"name":"office","mtu":1400}"#;
    let office = rig.ok("PATCH", "/v1/networks/lab", patch).await;
    assert_eq!(
        (&office["name"], &office["mtu"]),
        (&json!("office"), &json!(1400))
    );
    rig.ok("PATCH", "/v1/networks/lan", r#"{"name":"lab"}"#)
        .await;
    // Twice: as it is now, and as it is stored.
    let mut rig = rig;
    for _ in 0..2 {
        let ports = rig.ok("GET", "/v1/networks/office/ports", "").await;
        assert_eq!(ports["ports"].as_array().unwrap().len(), 2);
        assert_eq!(ports["ports"][0]["network"], "office");
        assert_eq!(rig.ok("GET", "/v1/networks/office/fdb", "").await, fdb);
        let uplink = rig.ok("GET", "/v1/networks/lab/ports/uplink", "").await;
        assert_eq!(uplink["interface"], "eth0");
        assert_eq!(rig.world().interfaces, world.interfaces);
        rig = rig.restart(false, |_| {}).await;
    }
    rig.ok("DELETE", "/v1/networks/lab", "").await;
    assert!(!rig.world().interfaces["eth0"].is_empty());
}

#[tokio::test]
async fn a_missing_uplink_is_down_until_it_appears() {
    let rig = Rig::new();
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    // As after a reboot: no TAP device, and no interface yet.
    let rig = rig
        .restart(false, |world| {
            world.interfaces.remove("vsw-lan");
            world.interfaces.remove("eth0");
        })
        .await;
    let port = rig.ok("GET", "/v1/networks/lan/ports/uplink", "").await;
    assert_eq!(
        (&port["state"], &port["detail"]),
        (&json!("down"), &json!("there is no interface 'eth0'"))
    );
    assert_eq!(
        rig.ok("GET", "/v1/networks/lan/ports/host", "").await["state"],
        "up"
    );
    rig.shared
        .with(|manager| {
            manager.tick();
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(
        rig.ok("GET", "/v1/networks/lan/ports/uplink", "").await["state"],
        "down"
    );
    rig.change_world(|world| {
        drop(
            world
                .interfaces
                .insert("eth0".into(), vec!["203.0.113.1/24".into()]),
        )
    });
    rig.shared
        .with(|manager| {
            manager.tick();
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(
        rig.ok("GET", "/v1/networks/lan/ports/uplink", "").await["state"],
        "up"
    );
    assert_eq!(rig.world().interfaces["vsw-lan"], ["203.0.113.1/24"]);
    rig.ok("DELETE", "/v1/networks/lan", "").await;
    assert_eq!(rig.world().interfaces["eth0"], ["203.0.113.1/24"]);
}

#[tokio::test]
async fn an_uplink_gets_what_the_host_nic_has_when_it_is_released() {
    let rig = Rig::new();
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    // The host's configuration gives the uplink another address while nobody takes care.
    let rig = rig
        .restart(false, |world| {
            let uplink = world.interfaces.get_mut("eth0").unwrap();
            uplink.push("198.51.100.1/24".into());
        })
        .await;
    let all = ["192.0.2.1/24", "2001:db8::1/64", "198.51.100.1/24"];
    assert_eq!(rig.world().interfaces["vsw-lan"], all);
    // And an operator changes those of the host NIC.
    rig.change_world(|world| {
        let nic = world.interfaces.get_mut("vsw-lan").unwrap();
        nic.retain(|address| address != "192.0.2.1/24");
        nic.push("203.0.113.7/24".into());
    });
    rig.ok("DELETE", "/v1/networks/lan", "").await;
    assert_eq!(
        rig.world().interfaces["eth0"],
        ["2001:db8::1/64", "198.51.100.1/24", "203.0.113.7/24"]
    );
}

#[tokio::test]
async fn a_crash_that_loses_the_host_nic_loses_no_address() {
    let rig = Rig::new();
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    let gain = |world: &mut super::rig::World| {
        let uplink = world.interfaces.get_mut("eth0").unwrap();
        uplink.push("198.51.100.1/24".into());
    };
    let rig = rig.restart(false, gain).await;
    // Killed as it deletes the network: the note is all that is left of it.
    rig.sql("DELETE FROM network");
    let lose = |world: &mut super::rig::World| drop(world.interfaces.remove("vsw-lan"));
    let rig = rig.restart(false, lose).await;
    let all = ["192.0.2.1/24", "2001:db8::1/64", "198.51.100.1/24"];
    assert_eq!(rig.world().interfaces["eth0"], all);
}

/// Restarts on a host that has booted anew: the host NICs are gone.
async fn reboot(rig: Rig) -> Rig {
    rig.restart(true, |world| {
        world.interfaces.retain(|name, _| !name.starts_with("vsw-"));
        world.macs.retain(|name, _| !name.starts_with("vsw-"));
    })
    .await
}

#[tokio::test]
async fn a_host_nic_that_is_made_anew_has_the_address_it_had() {
    let rig = Rig::new();
    let physical = "00:11:22:33:44:55".parse().unwrap();
    rig.change_world(|world| {
        world.macs.insert("eth0".into(), physical);
    });
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    rig.ok("POST", NETWORKS, INTERNAL).await;
    let before = rig.world().macs;
    assert_eq!(before["vsw-lan"], physical);
    let rig = reboot(rig).await;
    assert_eq!(rig.world().macs, before);

    // Networks of an earlier version keep the addresses that their host NICs have when they are restored first.
    rig.sql("UPDATE network SET host_mac = NULL");
    let rig = rig.restart(true, |_| {}).await;
    let rig = reboot(rig).await;
    assert_eq!(rig.world().macs, before);
}

#[tokio::test]
async fn a_change_cut_short_by_a_kill_is_undone() {
    for moved in ["NULL", r#"'["eth0","vsw-x",["192.0.2.9/24"]]'"#] {
        let rig = Rig::new();
        rig.sql(&format!(
            "INSERT INTO host_change VALUES ('vsw-x', 'eth0', {moved})"
        ));
        let rig = rig
            .restart(false, |world| {
                world.interfaces.insert("eth0".into(), Vec::new());
                world
                    .interfaces
                    .insert("vsw-x".into(), vec!["192.0.2.9/24".into()]);
            })
            .await;
        assert_eq!(rig.world().interfaces["eth0"], ["192.0.2.9/24"]);
        assert!(!rig.world().interfaces.contains_key("vsw-x"));
        assert_eq!(rig.rows(), 0);
    }
}

#[test]
fn what_version_3_stored_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    for schema in [
        include_str!("../../store/schema1.sql"),
        include_str!("../../store/schema2.sql"),
        include_str!("../../store/schema3.sql"),
    ] {
        connection.execute_batch(schema).unwrap();
    }
    let rows = r#"
        INSERT INTO network (name, type, mtu) VALUES ('lab', 'private', 1500);
        INSERT INTO network (name, type, mtu, uplink, host_nic, uplink_mtu)
            VALUES ('lan', 'external', 1500, 'eth0', 'vsw-lan', 9000);
        INSERT INTO host_change VALUES ('vsw-lan', 'eth0', '{"addresses":[],"settings":{"rp_filter":"2"}}');
        INSERT INTO port VALUES ('lab', 'a', '{"kind":"tap","interface":"t"}', 't', 'none', 'off', NULL, 'up', 1);
        PRAGMA user_version = 3;"#;
    connection.execute_batch(rows).unwrap();
    drop(connection);
    let networks = Store::open(&path).unwrap().load().unwrap();
    let [lab, lan] = networks.as_slice() else {
        panic!("{} networks", networks.len())
    };
    let settings = lan.host.uplink_settings.as_deref();
    assert_eq!(settings, Some(r#"{"rp_filter":"2"}"#));
    assert_eq!(lab.config.ageing.get(), 300);
    assert_eq!((lab.ports.len(), lab.ports[0].mac_quota), (1, None));
}

#[test]
fn a_database_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    drop(Store::open(&path).unwrap());
    rusqlite::Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 6)
        .unwrap();
    let error = Store::open(&path).err().unwrap().to_string();
    assert!(
        error.contains("has version 6, and this vswitchd knows versions up to 5"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    std::fs::write(
        &path,
        "not a database, but some text that is long enough to be taken for one".repeat(20),
    )
    .unwrap();
    assert!(
        Store::open(&path)
            .err()
            .unwrap()
            .to_string()
            .contains("state.db")
    );
}
