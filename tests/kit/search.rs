//! Looks for bytes in all memory that a process has and in all files of a directory: raw, and written in hexadecimal.
//!
//! Reading another process's memory takes the right to trace it. A process that the test has started itself is one it may
//! trace, unless the host forbids that to everybody; then the search fails, and does not find nothing.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Read at once.
const PART: usize = 1 << 20;

/// Every form in which `bytes` could be there.
pub(crate) fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let lower: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![bytes.to_vec(), lower.to_uppercase().into_bytes(), lower.into_bytes()]
}

/// Whether one of `forms` is in the process's memory.
pub(crate) fn in_memory(pid: u32, forms: &[Vec<u8>]) -> bool {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the right to read the memory of a child");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let mut searched = 0_u64;
    let mut found = false;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with('r'))) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let address = |word| u64::from_str_radix(word, 16).expect("hexadecimal");
        let (start, end) = (address(start), address(end));
        // The kernel's own pages can be seen and not read.
        let mut read = |at, buffer: &mut [u8]| memory.read_at(buffer, at).unwrap_or(0);
        let (bytes, here) = in_parts(start, end, forms, &mut read);
        searched += bytes;
        found |= here;
    }
    assert!(searched > PART as u64, "only {searched} bytes of process {pid} could be read");
    found
}

/// Whether one of `forms` is in a file below `dir`.
pub(crate) fn in_files(dir: &Path, forms: &[Vec<u8>]) -> bool {
    fs::read_dir(dir).expect("a directory").any(|entry| {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => in_files(&entry.path(), forms),
            kind if kind.is_file() => {
                let file = File::open(entry.path()).expect("it is ours");
                let length = file.metadata().expect("it is open").len();
                let mut read = |at, buffer: &mut [u8]| file.read_at(buffer, at).expect("it is readable");
                in_parts(0, length, forms, &mut read).1
            }
            // Sockets and links hold nothing.
            _ => false,
        }
    })
}

/// How much could be read from `start` to `end`, and whether something was found. Parts overlap, so nothing hides on an edge.
fn in_parts(start: u64, end: u64, forms: &[Vec<u8>], read: &mut impl FnMut(u64, &mut [u8]) -> usize) -> (u64, bool) {
    let longest = forms.iter().map(Vec::len).max().unwrap_or(0);
    let mut buffer = vec![0; longest + PART];
    let (mut at, mut kept, mut searched, mut found) = (start, 0, 0, false);
    while at < end {
        let room = usize::try_from(end - at).map_or(PART, |left| left.min(PART));
        let got = read(at, &mut buffer[kept..kept + room]);
        if got == 0 {
            break;
        }
        let there = kept + got;
        found |= contains(&buffer[..there], forms);
        (at, searched) = (at + got as u64, searched + got as u64);
        kept = there.min(longest);
        buffer.copy_within(there - kept..there, 0);
    }
    (searched, found)
}

fn contains(hay: &[u8], forms: &[Vec<u8>]) -> bool {
    forms.iter().any(|form| memchr::memmem::find(hay, form).is_some())
}
