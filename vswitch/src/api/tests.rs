//! Requests as JSON: what is taken, and how the rest is refused.

use super::*;

fn network(json: &str) -> Result<(NetworkConfig, Option<VlanId>), String> {
    let request: CreateNetwork = from_json(json.as_bytes()).map_err(|refusal| refusal.message)?;
    request.check().map_err(|refusal| refusal.message)
}

fn port(json: &str) -> Result<PortConfig, String> {
    let request: CreatePort = from_json(json.as_bytes()).map_err(|refusal| refusal.message)?;
    request.check().map_err(|refusal| refusal.message)
}

#[test]
fn networks_taken() {
    let (config, vlan) =
        network(r#"{"name":"lab","type":"external","uplink":"eth1","vlan":10,"mtu":9000}"#)
            .unwrap();
    assert_eq!(config.kind.host_nic().unwrap().as_str(), "vsw-lab");
    assert_eq!((config.mtu.get(), vlan.unwrap().get()), (9000, 10));
    let (config, _) =
        network(r#"{"name":"lab","type":"external","uplink":"eth1","no_host_nic":true}"#).unwrap();
    assert_eq!(config.kind.host_nic(), None);
    let (config, _) =
        network(r#"{"name":"a-very-long-name","type":"internal","host_nic":"h0"}"#).unwrap();
    assert_eq!(config.kind.host_nic().unwrap().as_str(), "h0");
    assert_eq!(
        network(r#"{"name":"p","type":"private"}"#).unwrap().0.mtu,
        Mtu::DEFAULT
    );
}

/// What a network may not be, and a part of the answer.
const NETWORKS_REFUSED: &[(&str, &str)] = &[
    ("", "no JSON"),
    ("[1]", "invalid"),
    (r#"{"type":"private"}"#, "missing field `name`"),
    (
        r#"{"name":"a b","type":"private"}"#,
        "network name 'a b' is not allowed; allowed: 1 to 64",
    ),
    (
        r#"{"name":"a","type":"bridge"}"#,
        "unknown variant `bridge`, expected one of `external`, `internal`",
    ),
    (
        r#"{"name":"a","type":"private","x":1}"#,
        "unknown field `x`",
    ),
    (
        r#"{"name":"a","name":"b","type":"private"}"#,
        "duplicate field `name`",
    ),
    (
        r#"{"name":"a","type":"private","mtu":67}"#,
        "MTU '67' is not allowed; allowed: 68 to 9000",
    ),
    (
        r#"{"name":"a","type":"private","mtu":65536}"#,
        "MTU '65536' is not allowed; allowed: 68 to 9000",
    ),
    (
        r#"{"name":"a","type":"private","mtu":1e9}"#,
        "floating point",
    ),
    (
        r#"{"name":"a","type":"internal","vlan":0}"#,
        "VLAN '0' is not allowed; allowed: 1 to 4094",
    ),
    (
        r#"{"name":"a","type":"internal","vlan":4095}"#,
        "VLAN '4095' is not allowed; allowed: 1 to 4094",
    ),
    (
        r#"{"name":"a","type":"private","vlan":10}"#,
        "VLAN 10 refused: a VLAN is that of the host NIC",
    ),
    (
        r#"{"name":"a","type":"external","uplink":"e","no_host_nic":true,"vlan":10}"#,
        "VLAN 10 refused",
    ),
    (
        r#"{"name":"a","type":"private","uplink":"eth0"}"#,
        "uplink 'eth0' given, but only external",
    ),
    (
        r#"{"name":"a","type":"internal","uplink":"eth0"}"#,
        "uplink 'eth0' given, but only external",
    ),
    (
        r#"{"name":"a","type":"private","host_nic":"h"}"#,
        "host_nic 'h' given, but a private network has none",
    ),
    (
        r#"{"name":"a","type":"internal","no_host_nic":true}"#,
        "use a private network",
    ),
    (
        r#"{"name":"a","type":"private","no_host_nic":true}"#,
        "is for external networks",
    ),
    (r#"{"name":"a","type":"external"}"#, "needs an uplink"),
    (
        r#"{"name":"a","type":"external","uplink":"abcdefghijklmnop"}"#,
        "'abcdefghijklmnop' is not allowed",
    ),
    (
        r#"{"name":"a","type":"external","uplink":"e","host_nic":"e"}"#,
        "cannot be both",
    ),
    (
        r#"{"name":"a","type":"external","uplink":"e","host_nic":"h","no_host_nic":true}"#,
        "exclude each other",
    ),
    (
        r#"{"name":"twelve-chars","type":"internal"}"#,
        "longer than 15 bytes",
    ),
];

#[test]
fn networks_refused() {
    for (json, why) in NETWORKS_REFUSED {
        let message = network(json).unwrap_err();
        assert!(message.contains(why), "{json}: {message}");
        assert!(
            !message.contains("line 1") || message.contains("no JSON"),
            "{message}"
        );
    }
}

#[test]
fn ports_taken() {
    let config = port(r#"{"name":"vm1","vhost_user":"/run/vm1.sock"}"#).unwrap();
    let PortBackend::VhostUser { mode, queues, .. } = &config.backend else {
        panic!("{config:?}")
    };
    assert_eq!((*mode, *queues), (VhostUserMode::Server, Queues::ONE));
    let config = port(
        r#"{"name":"t","tap":"tap0","vlan":"access:10","mac_guard":"02:00:00:00:00:01","mtu":9000,"link":"down"}"#,
    )
    .unwrap();
    assert_eq!(config.backend.target(), "tap0");
    assert_eq!(
        (config.vlan.to_string().as_str(), config.link),
        ("access:10", Link::Down)
    );
}

#[test]
fn ports_refused() {
    for (json, why) in [
        (r#"{"name":"p"}"#, "give one of vhost_user"),
        (
            r#"{"name":"p","tap":"t","vhost_user":"/s"}"#,
            "give one of vhost_user",
        ),
        (r#"{"name":"host","tap":"t"}"#, "choose another"),
        (r#"{"name":"uplink","tap":"t"}"#, "choose another"),
        (
            r#"{"name":"p","tap":"t","queues":2}"#,
            "settings of vhost_user ports",
        ),
        (
            r#"{"name":"p","tap":"t","mode":"client"}"#,
            "settings of vhost_user ports",
        ),
        (
            r#"{"name":"p","vhost_user":"s"}"#,
            "socket path 's' is not allowed; allowed: an absolute path",
        ),
        (
            r#"{"name":"p","vhost_user":"/s","queues":0}"#,
            "'0' is not allowed; allowed: 1 to 16",
        ),
        (
            r#"{"name":"p","vhost_user":"/s","vlan":"access:4095"}"#,
            "'access:4095' is not allowed",
        ),
        (
            r#"{"name":"p","vhost_user":"/s","mac_guard":"x"}"#,
            "MAC guard 'x' is not allowed",
        ),
        (
            r#"{"name":"p","vhost_user":"/s","link":"on"}"#,
            "unknown variant `on`, expected `up` or `down`",
        ),
    ] {
        let message = port(json).unwrap_err();
        assert!(message.contains(why), "{json}: {message}");
    }
}

#[test]
fn absent_and_null_differ_in_patches() {
    let patch: PatchPort = from_json(b"{}").unwrap();
    assert_eq!((patch.mtu, patch.network.clone()), (None, None));
    let config = port(r#"{"name":"p","tap":"t","mtu":9000}"#).unwrap();
    let home: NetworkName = "home".parse().unwrap();
    assert!(
        patch
            .apply(&home, &config)
            .unwrap_err()
            .message
            .contains("nothing to change")
    );
    let patch: PatchPort = from_json(br#"{"mtu":null,"network":null}"#).unwrap();
    let new = patch.apply(&home, &config).unwrap();
    assert_eq!((new.mtu, new.connected), (None, false));
    // What goes out comes in the same.
    let text = serde_json::to_string(&patch).unwrap();
    assert_eq!(text, r#"{"mtu":null,"network":null}"#);
}

#[test]
fn ports_of_the_network_itself_stay_in_it() {
    let home: NetworkName = "home".parse().unwrap();
    let backend = PortBackend::HostNic {
        interface: "h".parse().unwrap(),
    };
    let config = PortConfig::new("host".parse().unwrap(), backend);
    for (json, good) in [
        (r#"{"vlan":"access:10"}"#, true),
        (r#"{"network":"home"}"#, true),
        (r#"{"network":"other"}"#, false),
        (r#"{"network":null}"#, false),
        (r#"{"mtu":1400}"#, false),
    ] {
        let patch: PatchPort = from_json(json.as_bytes()).unwrap();
        assert_eq!(patch.apply(&home, &config).is_ok(), good, "{json}");
    }
}
