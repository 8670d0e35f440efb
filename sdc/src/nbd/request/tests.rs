//! Each test is named after the rule of the protocol document it checks.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 20;

fn export(read_only: bool) -> ExportInfo {
    ExportInfo { name: "demo".into(), description: String::new(), size: ByteCount(SIZE), read_only }
}

fn bytes(kind: u16, flags: u16, offset: u64, length: u64) -> BytesMut {
    let mut bytes = BytesMut::from(&encode_header(kind, flags, Cookie(7), ByteOffset(offset), ByteCount(length))[..]);
    if kind == command::WRITE {
        bytes.resize(HEADER_SIZE + length as usize, 0xab);
    }
    bytes
}

fn parse_on(read_only: bool, kind: u16, flags: u16, offset: u64, length: u64) -> Result<Command, ErrorCode> {
    let mut input = bytes(kind, flags, offset, length);
    let Parsed::Request(request) = parse(&mut input, &export(read_only)).expect("in step") else { panic!("whole") };
    assert!(input.is_empty(), "also a refused request is taken off the input");
    assert_eq!(request.cookie, Cookie(7));
    request.command
}

fn parse_one(kind: u16, flags: u16, offset: u64, length: u64) -> Result<Command, ErrorCode> {
    parse_on(false, kind, flags, offset, length)
}

#[test]
fn any_byte_range_inside_the_export_is_accepted() {
    assert_eq!(parse_one(command::READ, 0, 3, 5), Ok(Command::Read(ByteRange::new(3, 5))));
    assert_eq!(parse_one(command::READ, command_flag::DF, 0, SIZE), Ok(Command::Read(ByteRange::new(0, SIZE))));
    let written = Command::Write(ByteOffset(SIZE - 1), Bytes::from_static(&[0xab]), Durability::Policy);
    assert_eq!(parse_one(command::WRITE, 0, SIZE - 1, 1), Ok(written));
}

#[test]
fn fua_asks_for_stable_storage() {
    let written = Command::Write(ByteOffset(0), Bytes::from_static(&[0xab]), Durability::Stable);
    assert_eq!(parse_one(command::WRITE, command_flag::FUA, 0, 1), Ok(written));
    assert_eq!(
        parse_one(command::TRIM, command_flag::FUA, 0, 9),
        Ok(Command::Trim(ByteRange::new(0, 9), Durability::Stable))
    );
}

#[test]
fn write_zeroes_carries_its_flags() {
    let flags = command_flag::NO_HOLE | command_flag::FAST_ZERO;
    let options = ZeroOptions { durability: Durability::Policy, keep_provisioned: true, only_if_fast: true };
    assert_eq!(parse_one(command::WRITE_ZEROES, flags, 0, 9), Ok(Command::WriteZeroes(ByteRange::new(0, 9), options)));
}

#[test]
fn writes_beyond_the_end_are_enospc_and_others_einval() {
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 4)] {
        assert_eq!(parse_one(command::WRITE, 0, offset, length), Err(ErrorCode::Enospc));
        assert_eq!(parse_one(command::WRITE_ZEROES, 0, offset, length), Err(ErrorCode::Enospc));
        assert_eq!(parse_one(command::READ, 0, offset, length), Err(ErrorCode::Einval));
        assert_eq!(parse_one(command::TRIM, 0, offset, length), Err(ErrorCode::Einval));
        assert_eq!(parse_one(command::CACHE, 0, offset, length), Err(ErrorCode::Einval));
    }
}

#[test]
fn changes_of_a_read_only_export_are_eperm() {
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(parse_on(true, kind, 0, 0, 512), Err(ErrorCode::Eperm));
    }
    assert!(parse_on(true, command::READ, 0, 0, 512).is_ok());
}

#[test]
fn unknown_commands_and_flags_are_einval() {
    for kind in [command::BLOCK_STATUS, 8, u16::MAX] {
        assert_eq!(parse_one(kind, 0, 0, 512), Err(ErrorCode::Einval));
    }
    assert_eq!(parse_one(command::READ, command_flag::NO_HOLE, 0, 512), Err(ErrorCode::Einval));
    assert_eq!(parse_one(command::CACHE, 1 << 15, 0, 512), Err(ErrorCode::Einval));
    assert_eq!(parse_one(command::WRITE, command_flag::DF, 0, 512), Err(ErrorCode::Einval));
}

#[test]
fn flush_has_neither_offset_nor_length() {
    assert_eq!(parse_one(command::FLUSH, 0, 0, 0), Ok(Command::Flush));
    assert_eq!(parse_one(command::FLUSH, 0, 0, 1), Err(ErrorCode::Einval));
}

#[test]
fn a_length_of_zero_does_nothing() {
    for kind in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        assert_eq!(parse_one(kind, 0, 0, 0), Ok(Command::Nothing));
    }
}

#[test]
fn there_is_no_error_reply_to_a_disconnect() {
    assert_eq!(parse_one(command::DISC, u16::MAX, 1, 1), Ok(Command::Disconnect));
}

#[test]
fn a_read_above_the_maximum_payload_is_eoverflow() {
    let large = ExportInfo { size: ByteCount(1 << 40), ..export(false) };
    let mut input = bytes(command::READ, 0, 0, u64::from(MAXIMUM_PAYLOAD) + 1);
    let Ok(Parsed::Request(request)) = parse(&mut input, &large) else { panic!("whole") };
    assert_eq!(request.command, Err(ErrorCode::Eoverflow));
}

#[test]
fn garbage_and_oversized_payloads_are_violations_at_once() {
    assert_eq!(parse(&mut BytesMut::from(&b"GET "[..]), &export(false)), Err(Violation::RequestMagic(0x4745_5420)));
    let mut header = bytes(command::WRITE, 0, 0, 0);
    header[24..28].copy_from_slice(&(MAXIMUM_PAYLOAD + 1).to_be_bytes());
    assert_eq!(parse(&mut header, &export(false)), Err(Violation::PayloadLength(MAXIMUM_PAYLOAD + 1)));
}

#[test]
fn a_part_of_a_request_stays_in_the_input() {
    let whole = bytes(command::WRITE, 0, 0, 100);
    for length in 0..whole.len() {
        let mut input = BytesMut::from(&whole[..length]);
        let needed = if length < HEADER_SIZE { HEADER_SIZE } else { whole.len() };
        assert_eq!(parse(&mut input, &export(false)), Ok(Parsed::Need(needed)));
        assert_eq!(input.len(), length);
    }
}

proptest! {
    #[test]
    fn whatever_is_accepted_lies_inside_the_export(
        kind in 0u16..10, flags in any::<u16>(), offset in any::<u64>(), near in 0u64..=2 * SIZE, length in 0u64..4096, use_near in any::<bool>(),
    ) {
        let offset = if use_near { near } else { offset };
        let range = match parse_one(kind, flags & 0x1f, offset, length) {
            Ok(Command::Read(range) | Command::Trim(range, _) | Command::WriteZeroes(range, _) | Command::Cache(range)) => range,
            Ok(Command::Write(offset, data, _)) => ByteRange { offset, length: ByteCount(data.len() as u64) },
            Ok(Command::Flush | Command::Nothing | Command::Disconnect) | Err(_) => return Ok(()),
        };
        prop_assert_eq!((range.offset.0, range.length.0), (offset, length));
        prop_assert!(length > 0 && range.end().0 <= SIZE);
    }

    #[test]
    fn garbage_never_panics_and_never_runs_dry(noise in proptest::collection::vec(any::<u8>(), 0..200), with_magic in any::<bool>()) {
        let mut input = BytesMut::new();
        if with_magic {
            input.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        }
        input.extend_from_slice(&noise);
        // Each step takes something off the input, asks for more than there is, or ends the connection.
        while let Ok(parsed) = { let before = input.len(); let parsed = parse(&mut input, &export(false)); prop_assert!(input.len() <= before); parsed } {
            if let Parsed::Need(bytes) = parsed {
                prop_assert!(bytes > input.len());
                break;
            }
        }
    }
}
