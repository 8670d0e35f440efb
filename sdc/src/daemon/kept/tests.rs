use super::*;

fn at(seconds: u64) -> MonotonicTime {
    MonotonicTime::from_start(Duration::from_secs(seconds))
}

const CLUSTER: ClusterId = ClusterId::from_bytes([3; 16]);
const SDC: SdcId = SdcId(7);

fn map() -> ClusterMap {
    let mapping = pb::Mapping { sdc_id: SDC.0, access: pb::Access::ReadWrite.into(), ..Default::default() };
    let volume = pb::Volume {
        id: 1,
        name: "v".into(),
        pool_id: 1,
        size_bytes: 4096,
        vtree_id: 1,
        mappings: vec![mapping],
        ..Default::default()
    };
    let full = pb::ClusterMap {
        cluster_id: CLUSTER.as_bytes().to_vec(),
        revision: 5,
        pools: vec![pb::Pool { id: 1, pg_count: 1, copies: 2, ..Default::default() }],
        volumes: vec![volume],
        ..Default::default()
    };
    ClusterMap::from_full(full).unwrap()
}

fn issued(volume: u64) -> Issued {
    Issued { volume: VolumeId(volume), signed: vec![9, 9], key: TokenKey::from_bytes([4; KEY_SIZE]) }
}

/// A directory whose process registered, kept a token at 100 s, and was killed.
fn killed() -> (tempfile::TempDir, ProcessId) {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path()).unwrap();
    state.set_cluster(CLUSTER).unwrap();
    state.start_above(1).unwrap();
    let process = ProcessId::from_bytes([8; 16]);
    let keeping = Keeping::new(state.dir(), Owner::new(&state, CLUSTER, SDC, process), None);
    keeping.note(&[issued(1), issued(2)], at(100));
    keeping.write(Some(&map()), &mut Vec::new(), &mut Vec::new());
    (dir, process)
}

fn start(dir: &Path, now: MonotonicTime) -> Result<Kept, Unusable> {
    Kept::load(&State::open(dir).unwrap(), now)
}

#[test]
fn a_killed_process_goes_on_as_itself_while_a_token_lives() {
    let (dir, process) = killed();
    for seconds in [100, 159] {
        let kept = start(dir.path(), at(seconds)).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((kept.owner.process, kept.owner.sdc, kept.map.volumes.len()), (process, SDC.0, 1));
        let tokens: Vec<_> = kept.tokens().map(|token| (token.volume, token.signed)).collect();
        assert_eq!(tokens, [(VolumeId(1), vec![9, 9])], "of the mapped volume alone");
    }
    assert!(matches!(start(dir.path(), at(160)), Err(Unusable::Expired(_))));
    assert!(matches!(start(dir.path(), at(100)), Err(Unusable::Nothing)), "what is refused is removed");
}

#[test]
fn a_copied_directory_is_refused_and_the_original_goes_on() {
    let (dir, _) = killed();
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    assert!(matches!(start(copy.path(), at(101)), Err(Unusable::Copied)));
    assert!(start(dir.path(), at(101)).is_ok());
}

/// Replaces a word of the owner in both files, under right checksums.
fn forge(dir: &Path, was: &str, is: &str) {
    for name in [MAP, TOKENS] {
        let path = dir.join(name);
        let content = std::fs::read(&path).unwrap();
        let length = u32::from_le_bytes(content[16..20].try_into().unwrap()) as usize;
        let (json, rest) = content[HEADER..].split_at(length);
        let json = String::from_utf8(json.to_vec()).unwrap();
        assert!(json.contains(was), "{was}");
        let json: serde_json::Value = serde_json::from_str(&json.replace(was, is)).unwrap();
        durable::replace_private(&path, &file(&json, rest)).unwrap();
    }
}

#[test]
fn files_of_elsewhere_are_refused_with_the_reason() {
    let (dir, _) = killed();
    forge(dir.path(), &boot_id(), "another");
    assert!(matches!(start(dir.path(), at(101)), Err(Unusable::OtherBoot)));
    let (dir, _) = killed();
    forge(dir.path(), &CLUSTER.to_string(), &ClusterId::from_bytes([1; 16]).to_string());
    assert!(matches!(start(dir.path(), at(101)), Err(Unusable::OtherCluster(_))));
    let (dir, _) = killed();
    State::open(dir.path()).unwrap().follow(ClusterGeneration(9)).unwrap();
    let why = start(dir.path(), at(101)).err().unwrap().to_string();
    assert!(why.contains("generation") && why.contains('9'), "{why}");
    let (dir, _) = killed();
    let (other, _) = killed();
    std::fs::copy(other.path().join(MAP), dir.path().join(MAP)).unwrap();
    assert!(matches!(start(dir.path(), at(101)), Err(Unusable::Mixed)));
}

#[test]
fn what_is_damaged_newer_or_open_to_others_is_refused() {
    let whole = {
        let (dir, _) = killed();
        std::fs::read(dir.path().join(TOKENS)).unwrap()
    };
    for at_byte in (0..whole.len()).step_by(7).chain([0, 8, 12, 16, whole.len() - 1]) {
        let (dir, _) = killed();
        let path = dir.path().join(TOKENS);
        let mut content = std::fs::read(&path).unwrap();
        content[at_byte] ^= 0x40;
        durable::replace_private(&path, &content).unwrap();
        let why = start(dir.path(), at(101)).err().unwrap();
        assert!(matches!(why, Unusable::Damaged { .. } | Unusable::Newer { .. }), "byte {at_byte}: {why}");
        let (dir, _) = killed();
        durable::replace_private(&dir.path().join(TOKENS), &whole[..at_byte]).unwrap();
        let why = start(dir.path(), at(101)).err().unwrap();
        assert!(matches!(why, Unusable::Damaged { .. }), "cut at {at_byte}: {why}");
    }
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, _) = killed();
    std::fs::set_permissions(dir.path().join(TOKENS), std::fs::Permissions::from_mode(0o644)).unwrap();
    let why = start(dir.path(), at(101)).err().unwrap().to_string();
    assert!(why.contains("mode 644"), "{why}");
}

#[test]
fn a_process_goes_on_only_with_numbers_that_no_registration_gives() {
    let (dir, _) = killed();
    let mut numbers = Vec::new();
    loop {
        let state = State::open(dir.path()).unwrap();
        match Kept::load(&state, at(101)) {
            Ok(_) => numbers.push(state.boot()),
            Err(why) => {
                assert!(matches!(why, Unusable::TooOften), "{why}");
                break;
            }
        }
    }
    assert_eq!(numbers, (17..32).collect::<Vec<_>>(), "below 32, which the second registration gives");
}

/// Starts that fail before they look (a port is taken) count too: the numbers after them belong to whom the MDM gives them.
#[test]
fn starts_that_failed_never_bring_a_process_into_the_numbers_of_another_registration() {
    for failed in 15..40 {
        let (dir, _) = killed();
        (0..failed).for_each(|_| drop(State::open(dir.path()).unwrap()));
        let state = State::open(dir.path()).unwrap();
        assert!(state.boot() >= 32);
        assert!(matches!(Kept::load(&state, at(101)), Err(Unusable::TooOften)), "{}", state.boot());
    }
}

#[test]
fn a_process_that_went_on_and_registered_goes_on_with_the_numbers_of_that_registration() {
    let (dir, process) = killed();
    {
        let mut state = State::open(dir.path()).unwrap();
        let kept = Kept::load(&state, at(101)).unwrap_or_else(|why| panic!("{why}"));
        let owner = Owner::new(&state, CLUSTER, SDC, process);
        let keeping = Keeping::new(state.dir(), owner, Some(&kept));
        // Another process of the client had registered as the second, and this one is the third.
        state.start_above(3).unwrap();
        keeping.registered(&state);
        keeping.write(Some(&map()), &mut Vec::new(), &mut Vec::new());
    }
    let state = State::open(dir.path()).unwrap();
    assert!(Kept::load(&state, at(101)).is_ok());
    assert_eq!(state.boot(), 49);
    // Killed before it was written: the files are of the first registration still.
    let (dir, _) = killed();
    State::open(dir.path()).unwrap().start_above(3).unwrap();
    assert!(matches!(start(dir.path(), at(101)), Err(Unusable::TooOften)));
}
