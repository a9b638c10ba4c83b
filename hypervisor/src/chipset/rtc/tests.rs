use super::*;

/// 2026-11-21 12:34:56 UTC.
const START: i64 = 1_795_264_496 * SECOND;
const MILLI: u64 = 1_000_000;

fn rtc() -> Rtc {
    Rtc::new(&Contents::default(), START)
}

fn read(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
    let mut effects = Effects::new(now);
    rtc.write(0, 0, &[index | 0x80], &mut effects);
    let mut data = [0xff];
    rtc.read(0, 1, &mut data, &mut effects);
    data[0]
}

fn write(rtc: &mut Rtc, index: u8, value: u8, now: u64) -> Vec<Effect> {
    let mut effects = Effects::new(now);
    rtc.write(0, 0, &[index], &mut effects);
    rtc.write(0, 1, &[value], &mut effects);
    effects.take()
}

fn time(rtc: &mut Rtc, now: u64) -> Vec<u8> {
    [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS]
        .map(|index| read(rtc, index, now))
        .to_vec()
}

fn line(effects: &[Effect]) -> bool {
    let mut levels = effects.iter().filter_map(|effect| match effect {
        Effect::Line { gsi: 8, high } => Some(*high),
        _ => None,
    });
    levels.next_back().unwrap()
}

fn timer(effects: &[Effect]) -> Option<u64> {
    match effects.last().unwrap() {
        Effect::Timer { after, .. } => Some(after.as_nanos() as u64),
        Effect::CancelTimer { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_time_is_bcd_and_goes_on() {
    let mut rtc = rtc();
    assert_eq!(
        time(&mut rtc, 0),
        [0x20, 0x26, 0x11, 0x21, 0x12, 0x34, 0x56]
    );
    assert_eq!(read(&mut rtc, WEEKDAY, 0), 7, "a Saturday");
    assert_eq!(
        time(&mut rtc, 4_000 * MILLI),
        [0x20, 0x26, 0x11, 0x21, 0x12, 0x35, 0x00]
    );
}

#[test]
fn the_time_can_be_binary_and_of_twelve_hours() {
    let mut rtc = rtc();
    write(&mut rtc, REGISTER_B, HOURS_24 | BINARY, 0);
    assert_eq!(time(&mut rtc, 0), [20, 26, 11, 21, 12, 34, 56]);
    write(&mut rtc, REGISTER_B, BINARY, 0);
    for (hour, expected) in [
        (0, 12),
        (1, 1),
        (11, 11),
        (12, 0x8c),
        (13, 0x81),
        (23, 0x8b),
    ] {
        let now = ((hour + 12) % 24) * 3_600_000 * MILLI;
        assert_eq!(read(&mut rtc, HOURS, now), expected, "{hour}");
        assert_eq!(u64::from(rtc.decode_hour(expected)), hour);
    }
}

#[test]
fn a_clock_that_was_set_goes_on_from_there() {
    let mut rtc = rtc();
    write(&mut rtc, REGISTER_B, SET | HOURS_24, 0);
    for (index, value) in [
        (CENTURY, 0x19),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
    ] {
        write(&mut rtc, index, value, 0);
    }
    assert_eq!(
        read(&mut rtc, SECONDS, 5_000 * MILLI),
        0x59,
        "it stands still"
    );
    write(&mut rtc, REGISTER_B, HOURS_24, 5_000 * MILLI);
    assert_eq!(time(&mut rtc, 6_000 * MILLI), [0x20, 0, 1, 1, 0, 0, 0]);
    write(&mut rtc, MINUTES, 0x30, 6_000 * MILLI);
    assert_eq!(time(&mut rtc, 6_000 * MILLI), [0x20, 0, 1, 1, 0, 0x30, 0]);
}

#[test]
fn a_date_that_is_none_changes_nothing() {
    let mut rtc = rtc();
    write(&mut rtc, MONTH, 0x13, 0);
    write(&mut rtc, DAY, 0xff, 0);
    assert_eq!(
        time(&mut rtc, 0),
        [0x20, 0x26, 0x11, 0x21, 0x12, 0x34, 0x56]
    );
}

#[test]
fn the_bit_before_an_update_is_set_for_244_microseconds() {
    let mut rtc = rtc();
    assert_eq!(
        read(&mut rtc, REGISTER_A, 999 * MILLI) & UPDATE_IN_PROGRESS,
        0
    );
    assert_ne!(
        read(&mut rtc, REGISTER_A, 999 * MILLI + 800_000) & UPDATE_IN_PROGRESS,
        0
    );
    assert_eq!(
        read(&mut rtc, REGISTER_A, 1_000 * MILLI) & UPDATE_IN_PROGRESS,
        0
    );
}

#[test]
fn periodic_interrupts_come_at_their_rate() {
    let mut rtc = rtc();
    let asked = write(&mut rtc, REGISTER_B, HOURS_24 | PERIODIC, 0);
    assert!(!line(&asked));
    let period = timer(&asked).unwrap();
    assert_eq!(period, 976_562);
    let mut effects = Effects::new(period);
    rtc.timer(0, &mut effects);
    assert!(line(&effects.take()));
    assert_eq!(read(&mut rtc, REGISTER_C, period), INTERRUPT | PERIODIC);
    assert_eq!(
        read(&mut rtc, REGISTER_C, period),
        0,
        "reading acknowledges"
    );
    let mut effects = Effects::new(period);
    rtc.read(0, 1, &mut [0], &mut effects);
    assert_eq!(timer(&effects.take()), Some(period));
}

#[test]
fn the_alarm_goes_off_at_its_time_and_matches_wildcards() {
    for (alarm, seconds) in [
        ([0x12, 0x34, 0x58], 2),
        ([0xff, 0x35, 0x00], 4),
        ([0xff, 0xff, 0x56], 60),
        ([0x12, 0x34, 0x56], 86_400),
    ] {
        let mut rtc = rtc();
        for (index, value) in [ALARM_HOURS, ALARM_MINUTES, ALARM_SECONDS]
            .into_iter()
            .zip(alarm)
        {
            write(&mut rtc, index, value, 0);
        }
        let after = timer(&write(&mut rtc, REGISTER_B, HOURS_24 | ALARM, 0)).unwrap();
        assert_eq!(after, seconds * 1_000 * MILLI);
        let mut effects = Effects::new(after);
        rtc.timer(0, &mut effects);
        assert!(line(&effects.take()));
        assert_eq!(
            read(&mut rtc, REGISTER_C, after),
            INTERRUPT | ALARM | UPDATE | PERIODIC
        );
    }
}

#[test]
fn an_alarm_that_never_matches_asks_for_no_timer() {
    let mut rtc = rtc();
    write(&mut rtc, ALARM_SECONDS, 0x7f, 0);
    assert_eq!(timer(&write(&mut rtc, REGISTER_B, ALARM, 0)), None);
}

#[test]
fn the_next_alarm_is_the_first_second_that_matches() {
    let values = [0x00, 0x12, 0x34, 0x7f, 0xff];
    // The number in BCD, and whether it matches.
    let matches =
        |value: u8, now: i64| value >= ANY || i64::from((value >> 4) * 10 + (value & 15)) == now;
    let hour = |value: u8, now: i64| match value {
        ANY.. => true,
        _ => i64::from(((value & 0x7f) >> 4) * 10 + (value & 15)) == now,
    };
    let mut rtc = rtc();
    for (h, m, s) in values.iter().flat_map(|&h| {
        let rest = move |m| values.map(|s| (h, m, s));
        values.map(rest).into_iter().flatten()
    }) {
        rtc.put(ALARM_HOURS, h);
        rtc.put(ALARM_MINUTES, m);
        rtc.put(ALARM_SECONDS, s);
        let from = 43_200 + 34 * 60 + i64::from(h);
        let first = (from + 1..=from + 86_400).find(|at| {
            let now = at % 86_400;
            hour(h, now / 3600) && matches(m, now / 60 % 60) && matches(s, now % 60)
        });
        assert_eq!(rtc.next_alarm(from), first, "{h:#x}:{m:#x}:{s:#x}");
    }
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let contents = Contents {
        memory_below_4g: 3 << 30,
        memory_above_4g: 5 << 30,
        cpus: 4,
    };
    let mut rtc = Rtc::new(&contents, START);
    let word =
        |rtc: &mut Rtc, index| u16::from_le_bytes([read(rtc, index, 0), read(rtc, index + 1, 0)]);
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!(word(&mut rtc, 0x17), 0xffff);
    assert_eq!(
        word(&mut rtc, 0x34),
        ((0xc000_0000_u32 - 0x100_0000) >> 16) as u16
    );
    assert_eq!(word(&mut rtc, 0x5b), (5_u64 << 30 >> 16) as u16);
    assert_eq!(read(&mut rtc, 0x5d, 0), 1);
    assert_eq!(read(&mut rtc, 0x5f, 0), 3);
    assert_eq!(read(&mut rtc, REGISTER_D, 0), VALID);
}

#[test]
fn the_battery_keeps_time_and_memory_through_a_reset() {
    let mut rtc = rtc();
    write(&mut rtc, 0x0f, 0x0a, 0);
    write(&mut rtc, MINUTES, 0x00, 0);
    write(&mut rtc, REGISTER_B, HOURS_24 | EVENTS, 0);
    let mut effects = Effects::new(0);
    rtc.reset(&mut effects);
    assert!(!line(&effects.take()));
    assert_eq!(read(&mut rtc, 0x0f, 0), 0x0a);
    assert_eq!(read(&mut rtc, MINUTES, 0), 0);
    assert_eq!(read(&mut rtc, REGISTER_B, 0), HOURS_24);
}

#[test]
fn a_restored_clock_says_the_time_of_its_new_host() {
    let mut old = rtc();
    write(&mut old, HOURS, 0x13, 0);
    let state = old.save();
    let mut new = Rtc::new(&Contents::default(), START + 60 * SECOND);
    let mut effects = Effects::new(0);
    new.restore(&state, &mut effects).unwrap();
    assert_eq!(
        time(&mut new, 0),
        [0x20, 0x26, 0x11, 0x21, 0x13, 0x35, 0x56]
    );
    let mut forged = state.clone();
    forged["memory"] = vec![0; 127].into();
    assert!(new.restore(&forged, &mut effects).is_err());
    effects.now = 10_000 * MILLI;
    new.set_time(START, &mut effects);
    assert_eq!(
        time(&mut new, 10_000 * MILLI),
        [0x20, 0x26, 0x11, 0x21, 0x13, 0x34, 0x56]
    );
}

#[test]
fn extreme_times_harm_nothing() {
    for base in [i64::MIN, i64::MAX, 0] {
        for now in [0, u64::MAX] {
            let mut rtc = Rtc::new(&Contents::default(), base);
            for value in [SET | EVENTS, EVENTS, 0] {
                write(&mut rtc, REGISTER_B, value, now);
                time(&mut rtc, now);
                read(&mut rtc, REGISTER_C, now);
                write(&mut rtc, YEAR, 0x99, now);
            }
            rtc.set_time(base, &mut Effects::new(now));
        }
    }
}
