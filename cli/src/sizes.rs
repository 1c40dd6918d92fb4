//! Sizes as people type them: `65536`, `64K`, `64KiB`, `20GiB`.

/// The bytes that `text` means. Units are binary, with or without `iB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [&str; 5] = ["", "k", "m", "g", "t"];
    let wrong = || "write a size like 64KiB, 1MiB or 20GiB".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").unwrap_or(&unit);
    let power = match (letter, unit.as_str()) {
        ("b", _) => 0,
        ("", "ib") => return Err(wrong()),
        _ => UNITS.iter().position(|u| *u == letter).ok_or_else(wrong)?,
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << (10 * power))
        .ok_or_else(|| "the size is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("12b", 12),
            ("64K", 65536),
            ("64 KiB", 65536),
            ("20GiB", 20 << 30),
            ("3t", 3 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "iB",
            "5iB",
            "64KB",
            "-64",
            "1.5G",
            "K",
            "99999999T",
            "99999999999999999999",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
