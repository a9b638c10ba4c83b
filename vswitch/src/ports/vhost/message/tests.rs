use std::os::fd::OwnedFd;

use super::*;
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count)
        .map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap())
        .collect()
}

fn parse(code: Code, body: &[u8], count: usize) -> Result<Message, MessageError> {
    Message::parse(
        &Header {
            code,
            need_reply: false,
            size: body.len(),
        },
        body,
        fds(count),
    )
}

fn words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn header(code: u32, flags: u32, size: u32) -> Result<Header, MessageError> {
    let mut bytes = [0; HEADER_LEN];
    for (to, from) in bytes.iter_mut().zip(
        [code, flags, size]
            .iter()
            .flat_map(|value| value.to_ne_bytes()),
    ) {
        *to = from;
    }
    Header::parse(&bytes)
}

#[test]
fn headers() {
    assert_eq!(
        header(5, 9, 40),
        Ok(Header {
            code: Code::SetMemTable,
            need_reply: true,
            size: 40
        })
    );
    assert_eq!(header(5, 0, 40), Err(MessageError::Flags(0)));
    assert_eq!(header(5, 5, 40), Err(MessageError::Flags(5)));
    // GET_CONFIG was not offered.
    assert_eq!(header(24, 1, 0), Err(MessageError::Request(24)));
    assert_eq!(header(0, 1, 0), Err(MessageError::Request(0)));
    let too_long = MAX_BODY as u32 + 1;
    assert!(matches!(
        header(5, 1, too_long),
        Err(MessageError::Size { .. })
    ));
}

#[test]
fn every_request_is_read_and_refuses_other_sizes_and_descriptors() {
    use Code::*;
    // Request, a body, descriptors.
    let cases: Vec<(Code, Vec<u8>, usize)> = vec![
        (GetFeatures, vec![], 0),
        (SetFeatures, words(&[1]), 0),
        (SetOwner, vec![], 0),
        (ResetOwner, vec![], 0),
        (SetMemTable, words(&[1, 0, 4096, 0x7000, 0]), 1),
        (SetLogBase, words(&[4096, 0]), 1),
        (SetVringNum, words(&[256 << 32]), 0),
        (SetVringAddr, words(&[1 << 32, 1, 2, 3, 4]), 0),
        (SetVringBase, words(&[0]), 0),
        (GetVringBase, words(&[0]), 0),
        (SetVringKick, words(&[1]), 1),
        (SetVringCall, words(&[0x100]), 0),
        (SetVringErr, words(&[255]), 1),
        (GetProtocolFeatures, vec![], 0),
        (SetProtocolFeatures, words(&[1]), 0),
        (GetQueueNum, vec![], 0),
        (SetVringEnable, words(&[1 << 32]), 0),
        (SendRarp, words(&[0x0605_0403_0202]), 0),
        (NetSetMtu, words(&[1500]), 0),
        (GetInflightFd, words(&[0, 0, 2]), 0),
        (SetInflightFd, words(&[0, 0, 2]), 1),
        (ResetDevice, vec![], 0),
        (GetMaxMemSlots, vec![], 0),
        (AddMemReg, words(&[0, 0, 4096, 0x7000, 0]), 1),
        (RemMemReg, words(&[0, 0, 4096, 0x7000, 0]), 0),
        (SetStatus, words(&[15]), 0),
        (GetStatus, vec![], 0),
    ];
    for (code, body, count) in cases {
        assert!(parse(code, &body, count).is_ok(), "{code:?}");
        let mut longer = body.clone();
        longer.push(0);
        assert!(
            matches!(parse(code, &longer, count), Err(MessageError::Size { .. })),
            "{code:?}"
        );
        if let Some((_, shorter)) = body.split_first() {
            assert!(
                matches!(parse(code, shorter, count), Err(MessageError::Size { .. })),
                "{code:?}"
            );
        }
        if code != RemMemReg {
            assert!(
                matches!(parse(code, &body, count + 1), Err(MessageError::Fds { .. })),
                "{code:?}"
            );
        }
        if count > 0 {
            assert!(
                matches!(parse(code, &body, count - 1), Err(MessageError::Fds { .. })),
                "{code:?}"
            );
        }
    }
}

#[test]
fn fields_are_where_the_specification_has_them() {
    let Ok(Message::SetVringAddr(addr)) = parse(
        Code::SetVringAddr,
        &words(&[3 | 1 << 32, 10, 20, 30, 40]),
        0,
    ) else {
        panic!("no address");
    };
    assert_eq!(
        addr,
        VringAddr {
            index: 3,
            table: 10,
            used: 20,
            avail: 30
        }
    );
    let Ok(Message::AddMemReg(region)) = parse(Code::AddMemReg, &words(&[0, 1, 2, 3, 4]), 1) else {
        panic!("no region");
    };
    assert_eq!(
        (
            region.guest_addr,
            region.len,
            region.user_addr,
            region.fd_offset
        ),
        (1, 2, 3, 4)
    );
    let Ok(Message::SetVringCall(call)) = parse(Code::SetVringCall, &words(&[0x105]), 0) else {
        panic!("no call");
    };
    assert_eq!((call.index, call.fd.is_none()), (5, true));
    let Ok(Message::SendRarp(mac)) = parse(Code::SendRarp, &[2, 0, 0x5e, 0, 0, 1, 9, 9], 0) else {
        panic!("no address");
    };
    assert_eq!(mac.to_string(), "02:00:5e:00:00:01");
}

#[test]
fn bad_values_are_refused() {
    let cases: [(Code, Vec<u8>, usize); 5] = [
        (Code::SetVringNum, words(&[0x1_0000]), 0),
        (Code::SetVringEnable, words(&[2 << 32]), 0),
        (Code::SetVringKick, words(&[0x200]), 0),
        (Code::SetVringAddr, words(&[2 << 32, 0, 0, 0, 0]), 0),
        (Code::SetMemTable, words(&[9]), 0),
    ];
    for (code, body, count) in cases {
        assert!(
            matches!(parse(code, &body, count), Err(MessageError::Value { .. })),
            "{code:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_break_the_parser(
        number in 0u32..50,
        flags in any::<u32>(),
        body in prop::collection::vec(any::<u8>(), 0..MAX_BODY),
        count in 0usize..9,
    ) {
        if let Ok(header) = header(number, flags & 8 | 1, body.len() as u32) {
            let _ = Message::parse(&header, &body, fds(count));
        }
    }
}
