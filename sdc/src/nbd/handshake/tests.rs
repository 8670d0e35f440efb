//! Each test is named after the rule of the protocol document it checks.

use pflex_proto::ids::ByteCount;
use proptest::prelude::*;

use super::*;
use crate::nbd::wire::transmission;

const DEMO: &str = "demo";

fn demo() -> ExportInfo {
    ExportInfo { name: DEMO.into(), description: "a volume".into(), size: ByteCount(1 << 30), read_only: false }
}

fn option_bytes(kind: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn go_data(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((requests.len() as u16).to_be_bytes());
    requests.iter().for_each(|request| data.extend(request.to_be_bytes()));
    data
}

/// A handshake with one export, `demo`, whose questions are answered.
struct Conversation {
    handshake: Handshake,
    input: BytesMut,
    output: BytesMut,
}

impl Conversation {
    /// After the greeting and the client's flags.
    fn with_flags(flags: u16) -> Self {
        let mut output = BytesMut::new();
        let handshake = Handshake::begin(&mut output);
        output.clear();
        let input = BytesMut::from(&u32::from(flags).to_be_bytes()[..]);
        Self { handshake, input, output }
    }

    fn begin() -> Self {
        Self::with_flags(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
    }

    /// Sends bytes and answers questions; the last event, and what the server sent.
    fn send(&mut self, bytes: &[u8]) -> Result<(Event, Vec<u8>), Violation> {
        self.input.extend_from_slice(bytes);
        loop {
            match self.handshake.advance(&mut self.input, &mut self.output)? {
                Event::List => {
                    let list = [ExportSummary { name: DEMO.into(), description: "a volume".into() }];
                    self.handshake.listed(&list, &mut self.output);
                }
                Event::Open(request) => {
                    let unknown = OpenError::Unknown { name: request.name.clone() };
                    let export = demo();
                    let outcome = if [DEMO, ""].contains(&&*request.name) { Ok(&export) } else { Err(&unknown) };
                    self.handshake.opened(&request, outcome, &mut self.output)?;
                    if outcome.is_ok() && request.enters_transmission() {
                        return Ok((Event::Open(request), self.output.split().to_vec()));
                    }
                }
                event => return Ok((event, self.output.split().to_vec())),
            }
        }
    }

    /// Sends an option and splits the answer into (type, data).
    fn ask(&mut self, kind: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let (_event, answer) = self.send(&option_bytes(kind, data)).expect("no violation");
        replies(kind, &answer)
    }
}

fn replies(kind: u32, mut answer: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !answer.is_empty() {
        assert_eq!((answer.get_u64(), answer.get_u32()), (OPTION_REPLY_MAGIC, kind));
        let (reply, length) = (answer.get_u32(), answer.get_u32() as usize);
        replies.push((reply, answer[..length].to_vec()));
        answer.advance(length);
    }
    replies
}

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn the_greeting_offers_fixed_newstyle_and_no_zeroes() {
    let mut output = BytesMut::new();
    Handshake::begin(&mut output);
    assert_eq!(&output[..], b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flags_drop_the_connection() {
    assert_eq!(Conversation::with_flags(4).send(&[]), Err(Violation::ClientFlags(4)));
}

#[test]
fn go_tells_export_and_block_size_and_enters_transmission() {
    let mut talk = Conversation::begin();
    let (event, answer) =
        talk.send(&option_bytes(option::GO, &go_data(DEMO, &[info::NAME, info::DESCRIPTION]))).unwrap();
    assert!(matches!(event, Event::Open(_)));
    let told = replies(option::GO, &answer);
    assert_eq!(kinds(&told), [rep::INFO, rep::INFO, rep::INFO, rep::INFO, rep::ACK]);
    let mut export = &told[0].1[..];
    assert_eq!((export.get_u16(), export.get_u64()), (info::EXPORT, 1 << 30));
    assert_eq!(export.get_u16() & (transmission::HAS_FLAGS | transmission::READ_ONLY), transmission::HAS_FLAGS);
    let mut sizes = &told[1].1[..];
    assert_eq!(
        (sizes.get_u16(), sizes.get_u32(), sizes.get_u32(), sizes.get_u32()),
        (info::BLOCK_SIZE, 1, 4096, 32 << 20)
    );
    assert_eq!(told[2].1, [&info::NAME.to_be_bytes()[..], b"demo"].concat());
    assert_eq!(told[3].1, [&info::DESCRIPTION.to_be_bytes()[..], b"a volume"].concat());
}

#[test]
fn the_empty_name_is_the_default_export() {
    let told = Conversation::begin().ask(option::INFO, &go_data("", &[info::NAME]));
    assert_eq!(told[2].1[2..], *b"demo");
}

#[test]
fn info_of_an_unknown_export_is_err_unknown_and_haggling_goes_on() {
    let mut talk = Conversation::begin();
    assert_eq!(kinds(&talk.ask(option::GO, &go_data("other", &[]))), [rep::ERR_UNKNOWN]);
    assert_eq!(kinds(&talk.ask(option::INFO, &go_data(DEMO, &[]))), [rep::INFO, rep::INFO, rep::ACK]);
}

#[test]
fn malformed_go_is_err_invalid() {
    let mut talk = Conversation::begin();
    let good = go_data(DEMO, &[info::NAME]);
    let longer = [&good[..], &[0]].concat();
    let name_beyond_end = 100u32.to_be_bytes();
    let with_nul = go_data("a\0b", &[]);
    let not_utf8 = [&2u32.to_be_bytes()[..], &[0xff, 0xfe, 0, 0]].concat();
    let too_long = go_data(&"x".repeat(MAXIMUM_STRING + 1), &[]);
    for bad in [&good[..good.len() - 1], &longer, &name_beyond_end, &[], &with_nul, &not_utf8, &too_long] {
        assert_eq!(kinds(&talk.ask(option::GO, bad)), [rep::ERR_INVALID], "{bad:?}");
    }
}

#[test]
fn export_name_answers_with_size_flags_and_zeroes_unless_agreed_away() {
    for (flags, length) in [(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES, 10), (FLAG_FIXED_NEWSTYLE, 134), (0, 134)] {
        let (_, answer) = Conversation::with_flags(flags).send(&option_bytes(option::EXPORT_NAME, b"demo")).unwrap();
        assert_eq!((answer.len(), &answer[..8]), (length, &(1u64 << 30).to_be_bytes()[..]));
    }
}

#[test]
fn export_name_of_an_unknown_export_terminates_the_session() {
    let outcome = Conversation::begin().send(&option_bytes(option::EXPORT_NAME, b"other"));
    assert_eq!(outcome, Err(Violation::ExportName));
}

#[test]
fn list_names_all_exports_and_refuses_data() {
    let mut talk = Conversation::begin();
    let listed = talk.ask(option::LIST, &[]);
    assert_eq!(listed[0], (rep::SERVER, [&4u32.to_be_bytes()[..], b"demoa volume"].concat()));
    assert_eq!(kinds(&listed), [rep::SERVER, rep::ACK]);
    assert_eq!(kinds(&talk.ask(option::LIST, b"x")), [rep::ERR_INVALID]);
}

#[test]
fn structured_replies_are_agreed_on_and_bring_the_df_flag() {
    let mut talk = Conversation::begin();
    let df = |told: &[(u32, Vec<u8>)]| u16::from_be_bytes([told[0].1[10], told[0].1[11]]) & transmission::SEND_DF != 0;
    assert!(!df(&talk.ask(option::INFO, &go_data(DEMO, &[]))));
    assert_eq!(kinds(&talk.ask(option::STRUCTURED_REPLY, b"x")), [rep::ERR_INVALID]);
    assert!(!talk.handshake.agreed().structured_replies);
    assert_eq!(kinds(&talk.ask(option::STRUCTURED_REPLY, &[])), [rep::ACK]);
    assert!(df(&talk.ask(option::INFO, &go_data(DEMO, &[]))) && talk.handshake.agreed().structured_replies);
}

#[test]
fn abort_is_acknowledged_and_closes_even_with_data() {
    let (event, answer) = Conversation::begin().send(&option_bytes(option::ABORT, b"bye")).unwrap();
    assert_eq!((event, kinds(&replies(option::ABORT, &answer))), (Event::Close, vec![rep::ACK]));
}

#[test]
fn options_not_spoken_are_err_unsup_and_the_next_one_is_parsed() {
    let mut talk = Conversation::begin();
    for kind in [option::STARTTLS, 4, 0, 77, u32::MAX] {
        assert_eq!(kinds(&talk.ask(kind, &[])), [rep::ERR_UNSUP]);
    }
    for kind in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT, 11] {
        assert_eq!(kinds(&talk.ask(kind, b"some data")), [rep::ERR_UNSUP]);
    }
    assert_eq!(kinds(&talk.ask(option::STARTTLS, b"x")), [rep::ERR_INVALID]);
    assert_eq!(kinds(&talk.ask(option::LIST, &[])), [rep::SERVER, rep::ACK]);
}

#[test]
fn an_oversized_option_closes_without_waiting_for_its_data() {
    let mut talk = Conversation::begin();
    let header = &option_bytes(option::GO, &[])[..12];
    let outcome = talk.send(&[header, &u32::MAX.to_be_bytes()].concat());
    assert_eq!(outcome, Err(Violation::OptionLength { option: option::GO, length: u32::MAX }));
    assert_eq!(kinds(&replies(option::GO, &talk.output)), [rep::ERR_TOO_BIG]);
}

#[test]
fn bytes_behind_go_stay_for_the_transmission_phase() {
    let mut talk = Conversation::begin();
    let mut bytes = option_bytes(option::GO, &go_data(DEMO, &[]));
    bytes.extend(b"request");
    talk.send(&bytes).unwrap();
    assert_eq!(&talk.input[..], b"request");
}

proptest! {
    #[test]
    fn any_split_of_the_input_gives_the_same_answers(cuts in proptest::collection::vec(0usize..120, 0..6)) {
        let script = [
            option_bytes(option::STRUCTURED_REPLY, &[]), option_bytes(99, b"??"), option_bytes(option::LIST, &[]),
            option_bytes(option::GO, &go_data(DEMO, &[info::NAME])),
        ].concat();
        let whole = Conversation::begin().send(&script).unwrap().1;
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(script.len())).chain([0, script.len()]).collect();
        cuts.sort_unstable();
        let mut talk = Conversation::begin();
        let parts: Vec<u8> = cuts.windows(2).flat_map(|cut| talk.send(&script[cut[0]..cut[1]]).unwrap().1).collect();
        prop_assert_eq!(parts, whole);
    }

    #[test]
    fn garbage_never_panics(flags in any::<u16>(), kind in 0u32..12, data in proptest::collection::vec(any::<u8>(), 0..64), tail in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut talk = Conversation::with_flags(flags & 7);
        let _ = talk.send(&[option_bytes(kind, &data), tail].concat());
    }
}
