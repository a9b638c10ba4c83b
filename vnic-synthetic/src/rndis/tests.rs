//! Control messages as drivers send them, and as nobody should.

use proptest::prelude::*;
use vswitch::mac::Mac;

use super::control::{Adapter, MAX_REQUEST, link_changed};
use super::info::{Facts, Statistics};
use super::{oid, status};
use crate::wire::u32_at;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn facts() -> Facts {
    Facts {
        permanent_mac: MAC,
        mac_may_change: false,
        link_up: true,
        mtu: 1500,
        channels: 4,
        revision: 3,
        coalescing: true,
        statistics: Statistics {
            sent: 5,
            send_errors: 1,
            received: 1 << 33 | 7,
            no_buffer: 2,
        },
    }
}

fn message(kind: u32, body: &[u32], value: &[u8]) -> Vec<u8> {
    let len = 8 + 4 * body.len() + value.len();
    let words = [&[kind, len as u32], body].concat();
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(value);
    bytes
}

/// Status and value of a query.
fn query(adapter: &mut Adapter, facts: &Facts, id: u32, asked: &[u8]) -> (u32, Vec<u8>) {
    let request = message(4, &[9, id, asked.len() as u32, 20, 0], asked);
    let reply = adapter.handle(&request, facts).unwrap();
    let word = |at| u32_at(&reply, at).unwrap();
    assert_eq!(
        (word(0), word(4) as usize, word(8)),
        (0x8000_0004, reply.len(), 9)
    );
    assert_eq!((word(16) as usize, word(20)), (reply.len() - 24, 16));
    (word(12), reply[24..].to_vec())
}

fn set(adapter: &mut Adapter, facts: &Facts, id: u32, value: &[u8]) -> u32 {
    let request = message(5, &[9, id, value.len() as u32, 20, 0], value);
    let reply = adapter.handle(&request, facts).unwrap();
    assert_eq!(u32_at(&reply, 0), Some(0x8000_0005));
    u32_at(&reply, 12).unwrap()
}

#[test]
fn drivers_are_told_what_they_ask_for() {
    let mut adapter = Adapter::new(MAC);
    let word = |value: u32| value.to_le_bytes().to_vec();
    for (id, value) in [
        (oid::GEN_MAXIMUM_FRAME_SIZE, word(1500)),
        (oid::GEN_MAXIMUM_TOTAL_SIZE, word(1514)),
        (oid::ETHERNET_PERMANENT_ADDRESS, MAC.0.to_vec()),
        (oid::ETHERNET_CURRENT_ADDRESS, MAC.0.to_vec()),
        (oid::GEN_MEDIA_CONNECT_STATUS, word(0)),
        (oid::GEN_LINK_SPEED, word(100_000_000)),
        (oid::GEN_XMIT_OK, word(5)),
        (oid::GEN_RCV_OK, word(7)),
        (oid::GEN_RCV_NO_BUFFER, word(2)),
        (oid::GEN_CURRENT_PACKET_FILTER, word(0)),
    ] {
        assert_eq!(
            query(&mut adapter, &facts(), id, &[]),
            (0, value),
            "{id:#x}"
        );
    }
    let long = query(&mut adapter, &facts(), oid::GEN_RCV_OK, &[0; 8]).1;
    assert_eq!(long, (1u64 << 33 | 7).to_le_bytes());
    let (_, offloads) = query(
        &mut adapter,
        &facts(),
        oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
        &[0xa7, 3, 156, 0],
    );
    assert_eq!(offloads.len(), 156);
    // The friendly name is not known, and Linux goes on without.
    let unknown = query(&mut adapter, &facts(), 0x0002_0216, &[]);
    assert_eq!(unknown, (status::NOT_SUPPORTED, vec![]));
}

#[test]
fn every_object_of_the_list_can_be_queried() {
    for channels in [1, 4] {
        let mut adapter = Adapter::new(MAC);
        let facts = Facts {
            channels,
            ..facts()
        };
        let (_, list) = query(&mut adapter, &facts, oid::GEN_SUPPORTED_LIST, &[]);
        assert!(list.len() > 100);
        for id in list.chunks(4).map(|id| u32_at(id, 0).unwrap()) {
            assert_eq!(query(&mut adapter, &facts, id, &[]).0, 0, "{id:#x}");
        }
    }
}

#[test]
fn scaling_is_offered_in_the_size_that_the_driver_knows() {
    let mut adapter = Adapter::new(MAC);
    for (asked, len) in [(0, 20), (16, 16), (18, 18), (20, 20), (100, 20)] {
        let asked = vec![0; asked];
        let id = oid::GEN_RECEIVE_SCALE_CAPABILITIES;
        let value = query(&mut adapter, &facts(), id, &asked).1;
        assert_eq!((value.len(), usize::from(value[2])), (len, len));
        assert_eq!(u32_at(&value, 12), Some(4), "queues");
    }
    let one = Facts {
        channels: 1,
        ..facts()
    };
    let id = oid::GEN_RECEIVE_SCALE_CAPABILITIES;
    assert_eq!(query(&mut adapter, &one, id, &[]).0, status::NOT_SUPPORTED);
}

#[test]
fn offload_parameters_are_in_force_at_once() {
    let mut adapter = Adapter::new(MAC);
    let mut parameters = vec![0x80, 3, 28, 0, 4, 4, 4, 4, 4];
    parameters.resize(28, 0);
    assert_eq!(
        set(
            &mut adapter,
            &facts(),
            oid::TCP_OFFLOAD_PARAMETERS,
            &parameters
        ),
        0
    );
    assert!(adapter.receive.tcp4 && adapter.receive.udp6);
    parameters[5] = 1;
    set(
        &mut adapter,
        &facts(),
        oid::TCP_OFFLOAD_PARAMETERS,
        &parameters,
    );
    assert!(!adapter.receive.tcp4);
    let refused = set(&mut adapter, &facts(), oid::TCP_OFFLOAD_PARAMETERS, &[0x80]);
    assert_eq!(refused, status::INVALID_DATA);
}

/// The parameter by which drivers set another address.
fn address_parameter(name: &str, kind: u32, value: &str) -> Vec<u8> {
    let wide = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let (name, value) = (wide(name), wide(value));
    let words = [
        20,
        name.len() as u32,
        kind,
        20 + name.len() as u32,
        value.len() as u32,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(name);
    bytes.extend(value);
    bytes
}

#[test]
fn an_address_changes_where_it_may() {
    let other = address_parameter("NetworkAddress", 2, "0200000000Fe");
    let mut adapter = Adapter::new(MAC);
    let id = oid::GEN_RNDIS_CONFIG_PARAMETER;
    assert_eq!(
        set(&mut adapter, &facts(), id, &other),
        status::NOT_ACCEPTED
    );
    assert_eq!(adapter.filter.mac, MAC);
    let free = Facts {
        mac_may_change: true,
        ..facts()
    };
    assert_eq!(set(&mut adapter, &free, id, &other), 0);
    assert_eq!(adapter.filter.mac, Mac([2, 0, 0, 0, 0, 0xfe]));
    for bad in [
        address_parameter("NetworkAddres", 2, "020000000001"),
        address_parameter("NetworkAddress", 0, "020000000001"),
        address_parameter("NetworkAddress", 2, "02000000000"),
        address_parameter("NetworkAddress", 2, "02000000000g"),
        address_parameter("NetworkAddress", 2, "010000000000"),
        address_parameter("NetworkAddress", 2, "000000000000"),
        other[..other.len() - 1].to_vec(),
        vec![],
    ] {
        assert_eq!(set(&mut adapter, &free, id, &bad), status::INVALID_DATA);
    }
}

#[test]
fn what_is_malformed_is_not_answered() {
    let mut adapter = Adapter::new(MAC);
    let good = message(4, &[9, oid::GEN_LINK_SPEED, 0, 0, 0], &[]);
    assert!(
        adapter.handle(&good, &facts()).is_some(),
        "without a value, its offset means nothing"
    );
    for (name, bytes) in [
        ("nothing", vec![]),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("unknown type", message(99, &[9, 9], &[])),
        ("an answer", message(0x8000_0004, &[9, 9], &[])),
        ("no object", message(4, &[9], &[])),
        (
            "value beyond the message",
            message(5, &[9, oid::GEN_CURRENT_PACKET_FILTER, 4, 21, 0], &[0; 4]),
        ),
        (
            "offset that wraps",
            message(
                5,
                &[9, oid::GEN_CURRENT_PACKET_FILTER, 4, u32::MAX, 0],
                &[0; 4],
            ),
        ),
    ] {
        assert_eq!(adapter.handle(&bytes, &facts()), None, "{name}");
    }
}

#[test]
fn life_of_an_adapter() {
    let mut adapter = Adapter::new(MAC);
    let word = |reply: &[u8], at| u32_at(reply, at).unwrap();
    let initialized = adapter
        .handle(&message(2, &[1, 1, 0, 0x4000], &[]), &facts())
        .unwrap();
    assert_eq!(
        (word(&initialized, 0), word(&initialized, 4)),
        (0x8000_0002, 52)
    );
    assert_eq!((word(&initialized, 32), word(&initialized, 40)), (8, 3));
    let alive = adapter.handle(&message(8, &[5], &[]), &facts()).unwrap();
    assert_eq!((word(&alive, 0), word(&alive, 8)), (0x8000_0008, 5));
    assert_eq!(
        set(
            &mut adapter,
            &facts(),
            oid::GEN_CURRENT_PACKET_FILTER,
            &[0x2f, 0, 0, 0]
        ),
        0
    );
    let refused = set(
        &mut adapter,
        &facts(),
        oid::GEN_CURRENT_PACKET_FILTER,
        &[0x40, 0, 0, 0],
    );
    assert_eq!(
        (refused, adapter.filter.bits),
        (status::NOT_SUPPORTED, 0x2f)
    );
    let reset = adapter.handle(&message(6, &[0], &[]), &facts()).unwrap();
    assert_eq!((word(&reset, 0), word(&reset, 12)), (0x8000_0006, 1));
    assert_eq!(adapter, Adapter::new(MAC));
    assert_eq!(
        adapter.handle(&message(3, &[1], &[]), &facts()),
        None,
        "halt"
    );
    assert_eq!(word(&link_changed(true), 8), status::MEDIA_CONNECT);
}

proptest! {
    #[test]
    fn any_message_is_answered_in_bounds(
        kind in 0u32..10,
        object in prop::sample::select(vec![
            oid::GEN_CURRENT_PACKET_FILTER, oid::ETHERNET_MULTICAST_LIST, oid::TCP_OFFLOAD_PARAMETERS,
            oid::GEN_RECEIVE_SCALE_PARAMETERS, oid::GEN_RNDIS_CONFIG_PARAMETER,
            oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
        ]),
        len in 0u32..600,
        at in prop_oneof![Just(20u32), any::<u32>()],
        value in prop::collection::vec(any::<u8>(), 0..MAX_REQUEST),
    ) {
        let mut adapter = Adapter::new(MAC);
        let bytes = message(kind, &[1, object, len, at, 0], &value);
        if let Some(reply) = adapter.handle(&bytes, &facts()) {
            prop_assert_eq!(u32_at(&reply, 4), Some(reply.len() as u32));
        }
    }
}
