//! As many networks and ports as a large host has.

use super::rig::Rig;
use super::{NETWORKS, PRIVATE};

const MANY_NETWORKS: usize = 1000;
const MANY_PORTS: usize = 4096;

#[tokio::test]
async fn a_thousand_networks_and_four_thousand_ports_in_one() {
    crate::raise_open_files();
    let rig = Rig::new();
    rig.ok("POST", NETWORKS, PRIVATE).await;
    for n in 1..MANY_NETWORKS {
        let body = format!(r#"{{"name":"n{n}","type":"private"}}"#);
        rig.ok("POST", NETWORKS, &body).await;
    }
    for n in 0..MANY_PORTS {
        let body = format!(r#"{{"name":"p{n}","tap":"t{n}"}}"#);
        rig.ok("POST", "/v1/networks/lab/ports", &body).await;
    }
    let lab = rig.ok("GET", "/v1/networks/lab", "").await;
    assert_eq!(lab["ports"], MANY_PORTS);
    let listed = rig.ok("GET", NETWORKS, "").await;
    assert_eq!(listed["networks"].as_array().unwrap().len(), MANY_NETWORKS);
    let listed = rig.ok("GET", "/v1/ports", "").await;
    assert_eq!(listed["ports"].as_array().unwrap().len(), MANY_PORTS);
    let stats = rig.ok("GET", "/v1/stats", "").await;
    assert_eq!(stats["ports"].as_array().unwrap().len(), MANY_PORTS);
    // Each is still one of its own.
    let port = rig.ok("GET", "/v1/networks/lab/ports/p4095", "").await;
    assert_eq!(
        (&port["interface"], &port["state"]),
        (&"t4095".into(), &"up".into())
    );
    let body = r#"{"name":"p4095","tap":"t"}"#;
    let again = ("POST", "/v1/networks/lab/ports", body);
    rig.refused(again, 409, "a port 'p4095' in network 'lab' already")
        .await;
    rig.ok("DELETE", "/v1/networks/lab/ports/p0", "").await;
    rig.ok("DELETE", "/v1/networks/n999", "").await;
    let lab = rig.ok("GET", "/v1/networks/lab", "").await;
    assert_eq!(lab["ports"], MANY_PORTS - 1);
}
