//! Bus and adapter are saved and restored while frames are on their way.

use proptest::prelude::*;
use serde_json::{Value, json};
use vnic_synthetic::driver::{Carry, Frame, Setup};
use vnic_synthetic::port::{Config, State};
use vswitch::port::PortControl;

use crate::rig::{GUEST, PEER, Rig, frame};

/// A frame with a number in it.
fn numbered(to: vswitch::mac::Mac, from: vswitch::mac::Mac, number: u32) -> Vec<u8> {
    let mut bytes = frame(to, from, 60 + number as usize % 900);
    bytes[14..18].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[14..18].try_into().unwrap())
}

#[derive(Clone, Debug)]
enum Step {
    Up(u8, u8),
    Down(u8),
    Worker,
    Guest,
    Returns(bool),
    Query,
    Save,
    Kill,
}

fn steps(end: Step) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..3, 1u8..9).prop_map(|(carry, count)| Step::Up(carry, count)),
        4 => (1u8..20).prop_map(Step::Down),
        4 => Just(Step::Worker),
        2 => Just(Step::Guest),
        1 => any::<bool>().prop_map(Step::Returns),
        1 => Just(Step::Query),
        2 => Just(end),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every frame that the guest sent arrives once and in order, and so does every frame that was delivered to it.
    #[test]
    fn nothing_is_lost_or_comes_twice(steps in steps(Step::Save)) {
        let run = Run::of(steps);
        prop_assert_eq!(run.got_up, run.sent_up);
    }

    /// The process of the switch is killed, and what the driver negotiated is all that is known: what it sent may come
    /// twice, but nothing is lost that was delivered, and the driver gets every answer it waits for.
    #[test]
    fn a_driver_survives_the_switch(steps in steps(Step::Kill)) {
        let mut run = Run::of(steps);
        run.got_up.sort_unstable();
        run.got_up.dedup();
        prop_assert_eq!(run.got_up, run.sent_up);
    }
}

/// Frames that the guest sent, and that arrived; what must hold of the other direction is asserted.
struct Run {
    sent_up: Vec<u32>,
    got_up: Vec<u32>,
}

impl Run {
    fn of(steps: Vec<Step>) -> Run {
        // Small rings, so that answers pile up.
        let mut rig = Rig::new(Setup {
            ring: 2,
            receive: 24,
            ..Setup::linux()
        });
        let mut run = Run {
            sent_up: Vec::new(),
            got_up: Vec::new(),
        };
        let mut down = 0;
        for step in steps {
            run.step(&mut rig, step, &mut down);
            run.got_up
                .extend(rig.received().iter().map(|frame| number(frame)));
        }
        rig.guest.returns = true;
        for _ in 0..40 {
            rig.guest.give_back();
            rig.turn();
            run.got_up
                .extend(rig.received().iter().map(|frame| number(frame)));
        }
        let got_down: Vec<u32> = rig
            .guest
            .received
            .drain(..)
            .map(|received| {
                let number = number(&received.bytes);
                assert_eq!(received.bytes, numbered(GUEST, PEER, number));
                number
            })
            .collect();
        assert_eq!(got_down.len() as u64, rig.port.counters().rx.frames);
        assert!(got_down.is_sorted_by(|before, after| before < after));
        rig.balanced();
        // Every section came back: as many frames fit as in the beginning.
        rig.guest.returns = false;
        let before = rig.port.counters().rx.frames;
        for n in 0..60 {
            rig.station.send(&numbered(GUEST, PEER, n));
            rig.turn();
        }
        assert_eq!(rig.port.counters().rx.frames - before, 24 * 4096 / 1728 - 8);
        run
    }

    fn step(&mut self, rig: &mut Rig, step: Step, down: &mut u32) {
        match step {
            Step::Up(carry, count) => {
                let carry = [Carry::SendBuffer, Carry::Pages, Carry::Mixed][usize::from(carry)];
                let count = match carry {
                    Carry::SendBuffer => u32::from(count.min(5)),
                    _ => 1,
                };
                let first = self.sent_up.len() as u32;
                let frames: Vec<Frame> = (first..first + count)
                    .map(|n| Frame::plain(&numbered(PEER, GUEST, n)))
                    .collect();
                if rig.guest.send(carry, &frames).is_some() {
                    self.sent_up.extend(first..first + count);
                }
            }
            Step::Down(count) => {
                for _ in 0..count {
                    rig.station.send(&numbered(GUEST, PEER, *down));
                    *down += 1;
                }
            }
            Step::Worker => rig.worker_turn(),
            Step::Guest => rig.guest.poll(),
            Step::Returns(returns) => rig.guest.returns = returns,
            Step::Query => {
                let words = [4u32, 28, 9, 0x0001_0114, 0, 20, 0];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                rig.guest.try_send_control(&bytes);
            }
            Step::Save => rig.save_and_restore(),
            Step::Kill => rig.kill_and_restore(),
        }
    }
}

#[test]
fn what_the_driver_set_is_in_force_again() {
    let linux = Setup::linux();
    let mut rig = Rig::new(Setup {
        ring: 4,
        config: Config {
            channels: 3,
            ..linux.config
        },
        ..linux
    });
    assert_eq!(rig.open_sub_channels(2), 2);
    let group = [0x33, 0x33, 0, 0, 0, 7];
    assert_eq!(rig.set(0x0001_010e, &0x02u32.to_le_bytes()), 0);
    assert_eq!(rig.set(0x0101_0103, &group), 0);
    rig.turn();
    rig.save_and_restore();
    rig.station.send(&frame(GUEST, PEER, 60));
    rig.station.send(&frame(vswitch::mac::Mac(group), PEER, 60));
    let received = rig.at_guest();
    assert_eq!(received.len(), 1, "only the group");
    assert_eq!(received[0].bytes[..6], group);
    let filter = rig.query(0x0001_010e, &[]).1;
    assert_eq!(filter, [2, 0, 0, 0]);
    let sent = rig.query(0x0002_0102, &[]).1;
    assert_eq!(sent, [1, 0, 0, 0], "counters go on");
    for index in 1..3 {
        let up = frame(PEER, GUEST, 60 + index);
        assert!(rig.guest.send_by(index, &Frame::plain(&up)));
        assert_eq!(rig.at_station(), [up]);
    }
    rig.guest.shut_down();
}

#[test]
fn a_state_that_no_adapter_was_ever_in_is_refused() {
    let mut rig = Rig::new(Setup::linux());
    rig.guest.returns = false;
    rig.station.send(&frame(GUEST, PEER, 60));
    rig.turn();
    drop(rig.port.detach());
    let adapter = &rig.guest.host.adapter;
    let good = serde_json::to_value(adapter.save()).unwrap();
    let scaling =
        |table: &[u8], key: usize| json!({"table": table, "key": vec![0; key], "hash": 257});
    let cases: [(&str, Value); 24] = [
        ("/form", json!(2)),
        ("/version", json!(5)),
        ("/revision", json!(0)),
        ("/revision", json!(4)),
        ("/mtu", json!(67)),
        ("/mtu", json!(9001)),
        ("/receive_buffer/gpadl", json!(1)),
        ("/receive_buffer/section", json!(0)),
        ("/receive_buffer/section", json!(u32::MAX)),
        ("/receive_buffer", Value::Null),
        ("/send_buffer", json!(1)),
        ("/held", json!([[0, []]])),
        ("/held", json!([[0, [1]], [0, [1]]])),
        ("/held", json!([[0, [1, 1]]])),
        ("/held", json!([[0, [60_000]]])),
        ("/completions", json!([[1, 1, [1]]])),
        ("/driver/filter", json!(0x40)),
        ("/driver/multicast", json!(vec![[0; 6]; 65])),
        ("/driver/scaling", scaling(&[0, 0, 0], 40)),
        ("/driver/scaling", scaling(&[1], 40)),
        ("/driver/scaling", scaling(&[0], 39)),
        ("/sub_channels", json!(1)),
        ("/completions", json!([[0, 1, [2]]])),
        ("/replies", json!([vec![0; 409]])),
    ];
    for (at, value) in cases {
        let mut state = good.clone();
        *state.pointer_mut(at).unwrap() = value;
        let state: State = serde_json::from_value(state).unwrap();
        assert!(adapter.restore(&state).is_err(), "{at}");
        let now = serde_json::to_value(adapter.save()).unwrap();
        assert_eq!(now, good, "{at}: nothing is changed");
    }
    let many = json!(vec![json!([0, 1, [1]]); 65]);
    for (at, value) in [("/completions", many), ("/replies", json!([[1], [1], [1]]))] {
        let mut state = good.clone();
        *state.pointer_mut(at).unwrap() = value;
        let state: State = serde_json::from_value(state).unwrap();
        assert!(adapter.restore(&state).is_err(), "{at}");
    }
}
