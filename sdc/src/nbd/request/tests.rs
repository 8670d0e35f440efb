//! Each test is named after the rule of the protocol document it checks.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 20;
const SIMPLE: Agreed = Agreed { mode: Mode::Simple, allocation: false };
const STRUCTURED: Agreed = Agreed { mode: Mode::Structured, allocation: true };
const EXTENDED: Agreed = Agreed { mode: Mode::Extended, allocation: true };

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
    let parsed = parse(&mut input, &export(read_only), STRUCTURED).expect("in step");
    let Parsed::Request(request) = parsed else { panic!("whole") };
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
    for kind in [8, u16::MAX] {
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
    for (agreed, code) in [(STRUCTURED, ErrorCode::Eoverflow), (SIMPLE, ErrorCode::Einval)] {
        let mut input = bytes(command::READ, 0, 0, u64::from(MAXIMUM_PAYLOAD) + 1);
        let Ok(Parsed::Request(request)) = parse(&mut input, &large, agreed) else { panic!("whole") };
        assert_eq!(request.command, Err(code), "EOVERFLOW is only for who knows of DF");
    }
}

#[test]
fn garbage_and_oversized_payloads_are_violations_at_once() {
    assert_eq!(
        parse(&mut BytesMut::from(&b"GET "[..]), &export(false), SIMPLE),
        Err(Violation::RequestMagic(0x4745_5420))
    );
    let mut header = bytes(command::WRITE, 0, 0, 0);
    header[24..28].copy_from_slice(&(MAXIMUM_PAYLOAD + 1).to_be_bytes());
    let refused = Err(Violation::PayloadLength(u64::from(MAXIMUM_PAYLOAD) + 1));
    assert_eq!(parse(&mut header, &export(false), SIMPLE), refused);
}

fn extended(kind: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) -> Result<Parsed, Violation> {
    let header = encode_extended_header(kind, flags, Cookie(7), ByteOffset(offset), ByteCount(length));
    let mut input = BytesMut::from(&[&header[..], payload].concat()[..]);
    let large = ExportInfo { size: ByteCount(1 << 50), ..export(false) };
    let parsed = parse(&mut input, &large, EXTENDED);
    assert!(!matches!(parsed, Ok(Parsed::Request(_))) || input.is_empty(), "also a refused payload is consumed");
    parsed
}

fn extended_command(kind: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) -> Result<Command, ErrorCode> {
    match extended(kind, flags, offset, length, payload) {
        Ok(Parsed::Request(request)) => request.command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn block_status_needs_a_context_that_was_selected() {
    let range = ByteRange::new(512, 1024);
    assert_eq!(
        parse_one(command::BLOCK_STATUS, command_flag::REQ_ONE, 512, 1024),
        Ok(Command::BlockStatus(range, 1)),
        "REQ_ONE is one extent"
    );
    assert_eq!(parse_one(command::BLOCK_STATUS, 0, 512, 1024), Ok(Command::BlockStatus(range, MAXIMUM_EXTENTS)));
    let unselected = Agreed { allocation: false, ..STRUCTURED };
    let mut input = bytes(command::BLOCK_STATUS, 0, 512, 1024);
    let Ok(Parsed::Request(request)) = parse(&mut input, &export(false), unselected) else { panic!("whole") };
    assert_eq!(request.command, Err(ErrorCode::Einval));
}

#[test]
fn block_status_beyond_the_end_or_of_nothing_is_einval() {
    assert_eq!(parse_one(command::BLOCK_STATUS, 0, SIZE - 1, 2), Err(ErrorCode::Einval));
    assert_eq!(parse_one(command::BLOCK_STATUS, 0, 0, 0), Err(ErrorCode::Einval));
    assert_eq!(parse_one(command::READ, command_flag::REQ_ONE, 0, 1), Err(ErrorCode::Einval));
}

#[test]
fn df_without_structured_replies_is_einval() {
    let mut input = bytes(command::READ, command_flag::DF, 0, 512);
    let Ok(Parsed::Request(request)) = parse(&mut input, &export(false), SIMPLE) else { panic!("whole") };
    assert_eq!(request.command, Err(ErrorCode::Einval));
}

#[test]
fn fua_is_accepted_with_every_command() {
    for kind in [command::READ, command::CACHE, command::BLOCK_STATUS, command::TRIM, command::WRITE_ZEROES] {
        assert!(parse_one(kind, command_flag::FUA, 0, 512).is_ok(), "{kind}");
    }
    assert_eq!(parse_one(command::FLUSH, command_flag::FUA, 0, 0), Ok(Command::Flush));
}

#[test]
fn extended_requests_have_effect_lengths_of_64_bits() {
    let range = ByteRange::new(3, 1 << 40);
    assert_eq!(extended_command(command::TRIM, 0, 3, 1 << 40, &[]), Ok(Command::Trim(range, Durability::Policy)));
    let status = Command::BlockStatus(range, MAXIMUM_EXTENTS);
    assert_eq!(extended_command(command::BLOCK_STATUS, 0, 3, 1 << 40, &[]), Ok(status));
    assert_eq!(extended_command(command::READ, 0, 0, 1 << 40, &[]), Err(ErrorCode::Eoverflow));
    assert_eq!(extended_command(command::TRIM, 0, u64::MAX, u64::MAX, &[]), Err(ErrorCode::Einval));
}

#[test]
fn an_extended_write_has_its_payload_with_and_without_the_flag() {
    let written = Command::Write(ByteOffset(9), Bytes::from_static(b"data"), Durability::Policy);
    assert_eq!(extended_command(command::WRITE, command_flag::PAYLOAD_LEN, 9, 4, b"data"), Ok(written.clone()));
    assert_eq!(extended_command(command::WRITE, 0, 9, 4, b"data"), Ok(written), "QEMU's client sends it so");
}

#[test]
fn an_unexpected_payload_is_consumed_and_einval_and_an_oversized_one_disconnects() {
    for kind in [command::READ, command::TRIM, command::BLOCK_STATUS, command::FLUSH, 77] {
        assert_eq!(extended_command(kind, command_flag::PAYLOAD_LEN, 0, 12, &[1; 12]), Err(ErrorCode::Einval));
    }
    let too_long = u64::from(MAXIMUM_PAYLOAD) + 1;
    assert_eq!(
        extended(command::READ, command_flag::PAYLOAD_LEN, 0, too_long, &[]),
        Err(Violation::PayloadLength(too_long))
    );
    let compact = bytes(command::WRITE, command_flag::PAYLOAD_LEN, 0, 4);
    let Ok(Parsed::Request(request)) = parse(&mut compact.clone(), &export(false), STRUCTURED) else { panic!("whole") };
    assert_eq!(request.command, Err(ErrorCode::Einval), "without extended headers there is no such flag");
}

#[test]
fn each_form_of_header_has_its_own_magic() {
    let header = encode_extended_header(command::READ, 0, Cookie(7), ByteOffset(0), ByteCount(1));
    for (magic, agreed) in [(&header[..4], STRUCTURED), (&bytes(command::READ, 0, 0, 1)[..4], EXTENDED)] {
        assert!(matches!(parse(&mut BytesMut::from(magic), &export(false), agreed), Err(Violation::RequestMagic(_))));
    }
}

#[test]
fn a_part_of_a_request_stays_in_the_input() {
    let whole = bytes(command::WRITE, 0, 0, 100);
    for length in 0..whole.len() {
        let mut input = BytesMut::from(&whole[..length]);
        let needed = if length < HEADER_SIZE { HEADER_SIZE } else { whole.len() };
        assert_eq!(parse(&mut input, &export(false), SIMPLE), Ok(Parsed::Need(needed)));
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
            Ok(Command::Read(range) | Command::Trim(range, _) | Command::WriteZeroes(range, _) | Command::Cache(range)
                | Command::BlockStatus(range, _)) => range,
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
        while let Ok(parsed) = { let before = input.len(); let parsed = parse(&mut input, &export(false), SIMPLE); prop_assert!(input.len() <= before); parsed } {
            if let Parsed::Need(bytes) = parsed {
                prop_assert!(bytes > input.len());
                break;
            }
        }
    }
}
