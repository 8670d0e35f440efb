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
        Self::with_tls(Tls::No, flags)
    }

    fn with_tls(tls: Tls, flags: u16) -> Self {
        let mut output = BytesMut::new();
        let handshake = Handshake::begin(tls, &mut output);
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
                    self.handshake.list_ends(&mut self.output);
                }
                Event::Meta(request) => {
                    let unknown = OpenError::Unknown { name: request.name.clone() };
                    let export = demo();
                    let outcome = if [DEMO, ""].contains(&&*request.name) { Ok(&export) } else { Err(&unknown) };
                    self.handshake.found(&request, outcome, &mut self.output);
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
    Handshake::begin(Tls::No, &mut output);
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
    assert_eq!(talk.handshake.agreed().mode, Mode::Simple);
    assert_eq!(kinds(&talk.ask(option::STRUCTURED_REPLY, &[])), [rep::ACK]);
    assert!(df(&talk.ask(option::INFO, &go_data(DEMO, &[]))));
    assert_eq!(talk.handshake.agreed().mode, Mode::Structured);
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
    for kind in [4, 12, 77] {
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
fn an_option_that_is_too_long_is_skipped_and_the_next_one_is_parsed() {
    let mut talk = Conversation::begin();
    let long = option_bytes(option::GO, &vec![b'x'; MAXIMUM_OPTION_LENGTH as usize + 1]);
    let (_, answer) = talk.send(&[&long[..], &option_bytes(option::LIST, &[])].concat()).unwrap();
    assert_eq!(kinds(&replies(option::GO, &answer[..20 + 22])), [rep::ERR_TOO_BIG]);
    assert_eq!(kinds(&replies(option::LIST, &answer[20 + 22..])), [rep::SERVER, rep::ACK]);
    // In pieces too; a name that long cannot be answered at all.
    talk.send(&long[..1000]).unwrap();
    talk.send(&long[1000..]).unwrap();
    assert_eq!(kinds(&talk.ask(option::LIST, &[])), [rep::SERVER, rep::ACK]);
    let name = option_bytes(option::EXPORT_NAME, &vec![b'x'; MAXIMUM_OPTION_LENGTH as usize + 1]);
    assert!(talk.send(&name).is_err());
}

fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

fn structured() -> Conversation {
    let mut talk = Conversation::begin();
    talk.ask(option::STRUCTURED_REPLY, &[]);
    talk
}

/// The contexts an answer names; it must end with ACK.
fn contexts(told: &[(u32, Vec<u8>)]) -> Vec<(u32, String)> {
    let (last, named) = told.split_last().unwrap();
    assert_eq!(*last, (rep::ACK, vec![]));
    let named = named.iter().map(|(kind, data)| {
        assert_eq!(*kind, rep::META_CONTEXT);
        (u32::from_be_bytes(data[..4].try_into().unwrap()), String::from_utf8(data[4..].to_vec()).unwrap())
    });
    named.collect()
}

#[test]
fn list_meta_context_without_queries_returns_all_contexts_with_id_zero() {
    let told = structured().ask(option::LIST_META_CONTEXT, &meta_data(DEMO, &[]));
    assert_eq!(contexts(&told), [(0, BASE_ALLOCATION.to_owned())]);
}

#[test]
fn list_meta_context_takes_the_base_wildcard_and_exact_names() {
    let mut talk = structured();
    for queries in
        [&["base:"][..], &["base:allocation"], &["x-other:", "base:allocation"], &["base:", "base:allocation"]]
    {
        let told = talk.ask(option::LIST_META_CONTEXT, &meta_data(DEMO, queries));
        assert_eq!(contexts(&told), [(0, BASE_ALLOCATION.to_owned())], "{queries:?}");
    }
}

#[test]
fn unknown_namespaces_and_leaf_names_are_ignored_and_end_in_ack() {
    let mut talk = structured();
    for kind in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let told = talk.ask(kind, &meta_data(DEMO, &["x-unknown:thing", "base", "base:other", "qemu:dirty-bitmap:b"]));
        assert_eq!(contexts(&told), []);
    }
}

#[test]
fn set_meta_context_ignores_the_wildcard_and_without_queries_selects_none() {
    let mut talk = structured();
    for queries in [&["base:"][..], &[]] {
        assert_eq!(contexts(&talk.ask(option::SET_META_CONTEXT, &meta_data(DEMO, queries))), []);
    }
}

#[test]
fn set_meta_context_selects_by_exact_name_with_an_id() {
    let mut talk = structured();
    let told = talk.ask(option::SET_META_CONTEXT, &meta_data(DEMO, &["base:allocation", "base:allocation"]));
    assert_eq!(contexts(&told), [(BASE_ALLOCATION_ID, BASE_ALLOCATION.to_owned())], "once, each id is unique");
    talk.send(&option_bytes(option::GO, &go_data(DEMO, &[]))).unwrap();
    assert!(talk.handshake.agreed().allocation);
}

#[test]
fn the_contexts_of_the_last_set_hold_also_when_it_failed_and_only_for_its_export() {
    let select = meta_data(DEMO, &["base:allocation"]);
    let agreed = |second: &[u8]| {
        let mut talk = structured();
        talk.ask(option::SET_META_CONTEXT, &select);
        talk.ask(option::SET_META_CONTEXT, second);
        talk.send(&option_bytes(option::GO, &go_data(DEMO, &[]))).unwrap();
        talk.handshake.agreed().allocation
    };
    assert!(agreed(&select));
    assert!(agreed(&meta_data("", &["base:allocation"])), "the default export is this one");
    for replaced in [&b"broken"[..], &meta_data(DEMO, &[]), &meta_data("other", &["base:allocation"])] {
        assert!(!agreed(replaced), "{replaced:?}");
    }
}

#[test]
fn meta_contexts_of_an_unknown_export_are_err_unknown() {
    let mut talk = structured();
    for kind in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        assert_eq!(kinds(&talk.ask(kind, &meta_data("other", &["base:allocation"]))), [rep::ERR_UNKNOWN]);
    }
}

#[test]
fn syntactically_invalid_meta_context_requests_are_err_invalid() {
    let mut talk = structured();
    let good = meta_data(DEMO, &["base:allocation"]);
    let mut many = meta_data(DEMO, &[]);
    many[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    for bad in [&good[..good.len() - 1], &[&good[..], b"x"].concat(), &[], &many] {
        for kind in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
            assert_eq!(kinds(&talk.ask(kind, bad)), [rep::ERR_INVALID], "{bad:?}");
        }
    }
}

#[test]
fn set_meta_context_before_structured_replies_is_err_invalid() {
    let mut talk = Conversation::begin();
    let data = meta_data(DEMO, &["base:allocation"]);
    assert_eq!(kinds(&talk.ask(option::SET_META_CONTEXT, &data)), [rep::ERR_INVALID]);
    assert_eq!(contexts(&talk.ask(option::LIST_META_CONTEXT, &data)).len(), 1, "a list is harmless");
}

#[test]
fn extended_headers_take_precedence_over_structured_replies() {
    let mut talk = structured();
    assert_eq!(kinds(&talk.ask(option::EXTENDED_HEADERS, b"x")), [rep::ERR_INVALID]);
    assert_eq!(kinds(&talk.ask(option::EXTENDED_HEADERS, &[])), [rep::ACK]);
    assert_eq!(kinds(&talk.ask(option::STRUCTURED_REPLY, &[])), [rep::ERR_EXT_HEADER_REQD]);
    assert_eq!(talk.handshake.agreed().mode, Mode::Extended);
    let told = talk.ask(option::SET_META_CONTEXT, &meta_data(DEMO, &["base:allocation"]));
    assert_eq!(contexts(&told).len(), 1, "structured replies need not be asked for");
}

#[test]
fn export_name_after_extended_headers_terminates_the_session() {
    let mut talk = Conversation::begin();
    talk.ask(option::EXTENDED_HEADERS, &[]);
    let (event, answer) = talk.send(&option_bytes(option::EXPORT_NAME, DEMO.as_bytes())).unwrap();
    assert_eq!((event, answer.len()), (Event::Close, 0));
}

#[test]
fn info_and_go_with_the_same_parameters_tell_the_same() {
    let mut talk = structured();
    let data = go_data(DEMO, &[info::NAME, info::BLOCK_SIZE]);
    let told = talk.ask(option::INFO, &data);
    let (_, answer) = talk.send(&option_bytes(option::GO, &data)).unwrap();
    assert_eq!(replies(option::GO, &answer), told);
}

#[test]
fn unknown_information_requests_are_ignored() {
    let told = Conversation::begin().ask(option::INFO, &go_data(DEMO, &[17, u16::MAX]));
    assert_eq!(kinds(&told), [rep::INFO, rep::INFO, rep::ACK]);
}

#[test]
fn the_advertised_sizes_keep_the_constraints_of_the_document() {
    let (least, preferred, most) = (MINIMUM_BLOCK_SIZE, PREFERRED_BLOCK_SIZE, MAXIMUM_PAYLOAD);
    assert!(least.is_power_of_two() && least <= 1 << 16);
    assert!(preferred.is_power_of_two() && preferred >= least.max(512));
    assert!(most >= 1 << 25 && most >= preferred);
}

#[test]
fn read_only_exports_say_so_and_offer_no_changes() {
    use transmission::{HAS_FLAGS, READ_ONLY, SEND_FAST_ZERO, SEND_TRIM, SEND_WRITE_ZEROES};
    let frozen = ExportInfo { read_only: true, ..demo() };
    let flags = transmission_flags(&frozen, Mode::Structured);
    assert_eq!(flags & (HAS_FLAGS | READ_ONLY), HAS_FLAGS | READ_ONLY);
    assert_eq!(flags & (SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO), 0, "FAST_ZERO only with WRITE_ZEROES");
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
    fn garbage_never_panics(flags in any::<u16>(), kind in 0u32..13, data in proptest::collection::vec(any::<u8>(), 0..64), tail in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut talk = Conversation::with_flags(flags & 7);
        let _ = talk.send(&[option_bytes(kind, &data), tail].concat());
    }
}

fn forced() -> Conversation {
    Conversation::with_tls(Tls::Forced, FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
}

#[test]
fn in_forcedtls_mode_every_option_but_starttls_and_abort_is_answered_with_tls_reqd() {
    let mut conversation = forced();
    let (_, sent) = conversation.send(&[]).unwrap();
    assert!(sent.is_empty());
    for kind in [option::LIST, option::INFO, option::GO, option::STRUCTURED_REPLY, option::SET_META_CONTEXT, 99] {
        let (event, sent) = conversation.send(&option_bytes(kind, &[])).unwrap();
        assert_eq!((event, &sent[12..16]), (Event::NeedInput, &rep::ERR_TLS_REQD.to_be_bytes()[..]), "option {kind}");
    }
    let (_, sent) = conversation.send(&option_bytes(option::STARTTLS, b"x")).unwrap();
    assert_eq!(sent[12..16], rep::ERR_INVALID.to_be_bytes(), "STARTTLS has no data");
    assert_eq!(conversation.send(&option_bytes(option::ABORT, &[])).unwrap().0, Event::Close);
    let named = forced().send(&option_bytes(option::EXPORT_NAME, DEMO.as_bytes()));
    assert_eq!(named, Err(Violation::TlsRequired), "the session is ended");
}

#[test]
fn after_starttls_what_was_agreed_before_is_forgotten_and_a_second_one_is_invalid() {
    let mut conversation = forced();
    let (event, sent) = conversation.send(&option_bytes(option::STARTTLS, &[])).unwrap();
    assert_eq!((event, &sent[12..16]), (Event::StartTls, &rep::ACK.to_be_bytes()[..]));
    let meta = option_bytes(option::SET_META_CONTEXT, &[0, 0, 0, 4, b'd', b'e', b'm', b'o', 0, 0, 0, 0]);
    assert_eq!(conversation.send(&meta).unwrap().1[12..16], rep::ERR_INVALID.to_be_bytes(), "no structured replies");
    let (_, sent) = conversation.send(&option_bytes(option::STARTTLS, &[])).unwrap();
    assert_eq!(sent[12..16], rep::ERR_INVALID.to_be_bytes());
    let (event, _) = conversation.send(&option_bytes(option::GO, &go_data(DEMO, &[]))).unwrap();
    assert!(matches!(event, Event::Open(_)));
}

#[test]
fn what_was_put_behind_starttls_in_plaintext_is_not_taken_for_the_clients() {
    let bytes = [option_bytes(option::STARTTLS, &[]), option_bytes(option::LIST, &[])].concat();
    assert_eq!(forced().send(&bytes), Err(Violation::PlaintextBeforeTls));
}
