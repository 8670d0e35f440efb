//! Sizes and durations as people write and read them; and times of the wall clock.
//!
//! On the command line: `512MiB`, `10GiB`, `4096`, `2s`, `500ms`. In data: bytes, milliseconds, RFC 3339. A size on the
//! command line is exact or refused, never rounded.

use std::{fmt::Write as _, time::Duration};

use pflex_proto::geometry::BLOCK_SIZE;

/// Suffixes and their factors, longest first so that `MiB` is not read as `B`. Bare `M` means MiB, as for qemu-img and fio.
const SIZE_UNITS: [(&str, u64); 17] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("pib", 1 << 50),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("pb", 1_000_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("p", 1 << 50),
    ("b", 1),
    ("", 1),
];

const TIME_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("", 1_000)];

/// A number of bytes: `512MiB`, `10GiB`, `64K`, `4096`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    scaled(text, &SIZE_UNITS).ok_or_else(|| "a size is a whole number and a unit, like 512MiB or 10GiB".to_owned())
}

/// The size of a volume: above zero and a multiple of a block. Checked here so that a typing error never travels.
pub(crate) fn parse_volume_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    let block = u64::from(BLOCK_SIZE);
    if bytes == 0 {
        return Err("a volume has at least 4KiB".to_owned());
    }
    if !bytes.is_multiple_of(block) {
        let below = bytes / block * block;
        let near = if below == 0 { block.to_string() } else { format!("{below} or {}", below.saturating_add(block)) };
        return Err(format!("{bytes} bytes is not a multiple of 4KiB; nearest: {near}"));
    }
    Ok(bytes)
}

/// A duration above zero: `2s`, `500ms`, `1m`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match scaled(text, &TIME_UNITS) {
        Some(0) | None => Err("a time is a whole number above 0 and a unit, like 500ms, 2s or 1m".to_owned()),
        Some(ms) => Ok(Duration::from_millis(ms)),
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A size for a person: `1 GiB`, `1.5 GiB`, `4 KiB`. One decimal, so not exact.
pub(crate) fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let unit = (63 - bytes.leading_zeros()) / 10; // 1 for KiB: what of 2^10n fits
    let scale = 1u64 << (10 * unit);
    let (whole, tenth) = (bytes / scale, (u128::from(bytes % scale) * 10 / u128::from(scale)) as u64);
    let name = UNITS[unit as usize - 1];
    if tenth == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenth} {name}") }
}

/// A duration for a person, in its largest sensible unit.
pub(crate) fn format_duration(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..1_000 => format!("{ms} ms"),
        ms if ms % 1_000 == 0 => format!("{} s", ms / 1_000),
        ms => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    }
}

/// Milliseconds since 1970 in UTC as RFC 3339.
pub(crate) fn format_time(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let mut text = String::new();
    let (hour, minute, second) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60);
    write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", in_day % 1_000)
        .expect("writing to a string does not fail");
    text
}

/// Year, month and day of a day counted from 1970-01-01, by the proleptic Gregorian calendar: years begin in March, so
/// that the leap day is the last of a year, and 400 years always have 146,097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days from 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_or_refused() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("10 GiB"), Ok(10 << 30));
        assert_eq!(parse_size("64k"), Ok(65_536));
        assert_eq!(parse_size("1MB"), Ok(1_000_000));
        assert_eq!(parse_size("4096"), Ok(4_096));
        for bad in ["", "GiB", "1.5GiB", "-1", "1XiB", "99999999999PiB", "1 2", "0x10"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volume_sizes_are_whole_blocks_above_zero() {
        assert_eq!(parse_volume_size("4KiB"), Ok(4_096));
        assert_eq!(parse_volume_size("0").unwrap_err(), "a volume has at least 4KiB");
        assert_eq!(
            parse_volume_size("1MB").unwrap_err(),
            "1000000 bytes is not a multiple of 4KiB; nearest: 999424 or 1003520"
        );
        assert!(parse_volume_size("1").unwrap_err().ends_with("nearest: 4096"));
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert!(parse_duration("0s").is_err() && parse_duration("fast").is_err());
    }

    #[test]
    fn people_read_short_sizes() {
        for (bytes, text) in
            [(0, "0 B"), (4096, "4 KiB"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (u64::MAX, "15.9 EiB")]
        {
            assert_eq!(format_size(bytes), text);
        }
        assert_eq!(format_duration(Duration::from_millis(1_530)), "1.5 s");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(format_time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(format_time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(format_time(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(format_time(4_102_444_800_000), "2100-01-01T00:00:00.000Z");
    }
}
