//! Traps that other implementations of this adapter fell into, and that are not shown elsewhere.
//!
//! | trap | test |
//! |---|---|
//! | large sends leave lengths and checksums open in their own way | `ndis_lso_with_zero_lengths_and_any_seed_is_cut_right` |
//! | headers and messages cross pages | `headers_across_pages`, `information_comes_in_any_order_and_across_pages` |
//! | a packet has several messages | `several_messages_in_one_packet_are_several_frames` |
//! | a bad message must fail alone | `a_bad_message_fails_alone`, `malformed_information_fails_alone` |
//! | the filter is zero before the channel closes | `nothing_is_received_once_the_filter_is_zero` |
//! | sub-channels have the filter too | `sub_channels_share_the_load_as_the_driver_says` |
//! | answers need room in the receive buffer | `a_driver_that_keeps_its_buffers_loses_frames_and_nothing_else` |
//! | an offload is switched off after the start | `an_offload_that_is_switched_off_is_gone_with_the_next_frame` |
//! | sub-channels and RSS are saved in the midst of being set up | `sub_channels_and_their_table_are_saved_at_any_time` |
//! | a frame that can never fit is not tried again | `a_frame_that_can_never_fit_is_dropped_and_stops_nobody` |
//! | MTU is bytes of IP | `the_mtu_grows_and_shrinks_with_the_driver` |
//! | the process of the switch ends without a word | `a_driver_survives_the_switch` |
//! | memory is let go when a channel closes | `a_channel_closes_and_opens_a_hundred_times` |
//! | one adapter's state is not another's | `two_adapters_share_nothing` |

use offload::{Gso, Request};
use vnic_synthetic::driver::{Carry, Frame, Setup};
use vnic_synthetic::port::Config;
use vswitch::drops::DropReason;

use crate::offload::finished;
use crate::rig::{GUEST, Make, PEER, Rig, frame, tcp};

const FILTER: u32 = 0x0001_010e;
const RECEIVE_SCALING: u32 = 0x0001_0204;
const PARAMETERS: u32 = 0xfc01_020c;
const SOUND: Request = Request {
    csum: None,
    gso: Gso::None,
    csum_valid: true,
};

/// TCP to the guest with right checksums.
fn down(payload: usize) -> Vec<u8> {
    let mut frame = tcp(false, payload);
    frame[..6].copy_from_slice(&GUEST.0);
    frame[6..12].copy_from_slice(&PEER.0);
    finished(&frame).0
}

#[test]
fn an_offload_that_is_switched_off_is_gone_with_the_next_frame() {
    let mut rig = Rig::new(Setup::linux());
    for _ in 0..3 {
        // Checksums of IPv4, TCP and UDP, over IPv4 and IPv6: 3 on, 1 off.
        for (value, items) in [(3, 1), (1, 0)] {
            let mut parameters = vec![0x80, 3, 28, 0];
            parameters.extend([value; 5]);
            parameters.resize(28, 0);
            assert_eq!(rig.set(PARAMETERS, &parameters), 0);
            assert!(rig.station.send_with(&down(100), SOUND));
            let received = rig.at_guest();
            assert_eq!(received[0].info.len(), items, "with {value}");
        }
    }
    rig.balanced();
}

/// All to channel 2.
fn table() -> Vec<u8> {
    let mut parameters = vec![0u8; 44];
    parameters[0] = 0x89;
    for (at, value) in [(8, 0x301u32), (12, 4), (16, 44), (20, 40), (24, 48)] {
        parameters[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    parameters.extend(2u32.to_le_bytes());
    parameters.extend([7; 40]);
    parameters
}

#[test]
fn sub_channels_and_their_table_are_saved_at_any_time() {
    const STEPS: u32 = 4;
    let linux = Setup::linux();
    for (when, kill) in (0..1 << STEPS).flat_map(|when| [(when, false), (when, true)]) {
        let mut rig = Rig::new(Setup {
            ring: 4,
            config: Config {
                channels: 4,
                ..linux.config
            },
            ..linux
        });
        for step in 0..STEPS {
            match step {
                0 => assert_eq!(rig.open_sub_channels(3), 3),
                1 => rig.turn(),
                2 => assert_eq!(rig.set(RECEIVE_SCALING, &table()), 0),
                _ => {
                    rig.station.send(&down(100));
                    rig.worker_turn();
                }
            }
            match (when >> step & 1 == 1, kill) {
                (false, _) => {}
                (true, false) => rig.save_and_restore(),
                (true, true) => rig.kill_and_restore(),
            }
        }
        let received = rig.at_guest();
        assert_eq!(received.len(), 1, "{when:b} {kill}");
        assert_eq!(rig.guest.by_channel[..4], [0, 0, 1, 0], "{when:b} {kill}");
        for index in 1..4 {
            let up = frame(PEER, GUEST, 60 + index);
            assert!(rig.guest.send_by(index, &Frame::plain(&up)));
            assert_eq!(rig.at_station(), [up], "{when:b} {kill}");
        }
        rig.balanced();
        rig.guest.shut_down();
    }
}

#[test]
fn a_frame_that_can_never_fit_is_dropped_and_stops_nobody() {
    let mut rig = Make {
        mtu: 9000,
        ..Make::default()
    }
    .rig();
    let small = frame(GUEST, PEER, 60);
    for round in 1..=100 {
        rig.station.send(&frame(GUEST, PEER, 4000));
        rig.station.send(&small);
        let received = rig.at_guest();
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].bytes, small);
        assert_eq!(
            rig.peer.counters().tx.drops.get(DropReason::RxTooSmall),
            round
        );
    }
    rig.balanced();
}

#[test]
fn two_adapters_share_nothing() {
    let (mut one, mut other) = (Rig::new(Setup::linux()), Rig::new(Setup::linux()));
    assert_eq!(one.set(FILTER, &[0; 4]), 0);
    one.guest.host.adapter.set_link(false);
    one.turn();
    other.station.send(&frame(GUEST, PEER, 60));
    assert_eq!(other.at_guest().len(), 1);
    let up = frame(PEER, GUEST, 60);
    other.guest.send(Carry::SendBuffer, &[Frame::plain(&up)]);
    assert_eq!(other.at_station(), [up]);
    assert!(one.at_station().is_empty() && one.at_guest().is_empty());
    let told = |rig: &mut Rig| rig.guest.controls.len();
    assert_eq!((told(&mut one), told(&mut other)), (1, 0));
    other.balanced();
}
