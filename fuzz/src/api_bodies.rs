//! Anything as the body of a request to the API.
//!
//! Input: a byte that chooses the request, the body. What is accepted can be written again, and then means the same.

use serde::Serialize;
use serde::de::DeserializeOwned;
use vswitch::api::{
    AddFdbEntry, ConfigDocument, CreateNetwork, CreatePort, NetworkConfig, PatchNetwork, PatchPort,
    PortBackend, PortConfig, from_json,
};

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((which, body)) = data.split_first() else {
        return;
    };
    match which % 6 {
        0 => create_network(body),
        1 => {
            if let Some(patch) = same::<PatchNetwork>(body) {
                let again = rewritten(&patch);
                assert_eq!((again.mtu, again.vlan), (patch.mtu, patch.vlan));
                for config in networks() {
                    assert_eq!(again.check(&config), patch.check(&config));
                }
            }
        }
        2 => {
            if let Some(create) = same::<CreatePort>(body) {
                let again = create.clone().check();
                assert_eq!(again, rewritten(&create).check());
            }
        }
        3 => patch_port(body),
        4 => drop(same::<AddFdbEntry>(body)),
        _ => {
            if let Some(document) = same::<ConfigDocument>(body) {
                assert_eq!(rewritten(&document).check(), document.check());
            }
        }
    }
}

/// The request in `body`, if it is one; written and read again it is the same.
fn same<T: DeserializeOwned + Serialize>(body: &[u8]) -> Option<T> {
    let request: T = from_json(body).ok()?;
    assert_eq!(text(&rewritten(&request)), text(&request));
    Some(request)
}

fn text(request: &impl Serialize) -> String {
    serde_json::to_string(request).expect("requests are plain data")
}

fn rewritten<T: DeserializeOwned + Serialize>(request: &T) -> T {
    from_json(text(request).as_bytes()).expect("what was accepted is accepted again")
}

fn create_network(body: &[u8]) {
    let Some(create) = same::<CreateNetwork>(body) else {
        return;
    };
    let (kind, vlan, mtu) = (create.kind, create.vlan, create.mtu);
    let again = rewritten(&create).check();
    let result = create.check();
    assert_eq!(result, again);
    if let Ok((config, checked_vlan)) = result {
        assert_eq!(config.kind.network_type(), kind);
        assert_eq!(checked_vlan, vlan);
        assert!(mtu.is_none_or(|mtu| mtu == config.mtu));
        assert!(
            vlan.is_none() || config.kind.host_nic().is_some(),
            "nobody to carry the VLAN"
        );
        assert!(config.kind.uplink().is_none() || config.kind.uplink() != config.kind.host_nic());
    }
}

fn patch_port(body: &[u8]) {
    let Some(patch) = same::<PatchPort>(body) else {
        return;
    };
    let again = rewritten(&patch);
    let network = "lab".parse().expect("a name");
    for config in ports() {
        assert_eq!(
            again.apply(&network, &config),
            patch.apply(&network, &config)
        );
        if let Ok(new) = patch.apply(&network, &config) {
            assert_eq!((&new.name, &new.backend), (&config.name, &config.backend));
            assert!(new.connected || !new.backend.belongs_to_network());
            assert_eq!(
                patch.apply(&network, &new),
                Ok(new.clone()),
                "a change made twice is made once"
            );
        }
    }
}

fn networks() -> Vec<NetworkConfig> {
    let bodies: [&str; 3] = [
        r#"{"name":"a","type":"private"}"#,
        r#"{"name":"b","type":"internal"}"#,
        r#"{"name":"c","type":"external","uplink":"eth0"}"#,
    ];
    let config = |body: &str| {
        let create: CreateNetwork = from_json(body.as_bytes()).expect("valid");
        create.check().expect("valid").0
    };
    bodies.into_iter().map(config).collect()
}

fn ports() -> Vec<PortConfig> {
    let interface = "eth0";
    let interface = || interface.parse().expect("a name");
    [
        PortBackend::Uplink {
            interface: interface(),
        },
        PortBackend::Tap {
            interface: interface(),
        },
    ]
    .map(|backend| PortConfig::new("p".parse().expect("a name"), backend))
    .into()
}
