//! What a command gives back: tables for people, JSON Lines for programs, both on standard output.
//!
//! Names come from guests, hosts and files and may be hostile: nothing reaches a terminal without
//! [`shown`]. A reader that goes away (`virtkeep list | head`) is no error.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

/// Standard output, in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// For people, or with `json` for programs.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program is reading.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// One line of JSON; nothing when people are reading.
    pub(crate) fn json<T: Serialize>(self, line: &T) -> Result<(), OutputError> {
        if !self.json {
            return Ok(());
        }
        let mut text = serde_json::to_vec(line).map_err(|error| OutputError(error.into()))?;
        text.push(b'\n');
        print(&text)
    }

    /// Text for people, without a line break at its end; nothing when a program is reading.
    pub(crate) fn text(self, text: &str) -> Result<(), OutputError> {
        if self.json {
            return Ok(());
        }
        print(format!("{text}\n").as_bytes())
    }

    /// Bytes as they are.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), OutputError> {
        print(bytes)
    }
}

/// A line on standard error. That nobody reads it any more is no reason to stop: a server, a backup or
/// the clean-up after one goes on without.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn print(bytes: &[u8]) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(OutputError)
}

/// The result could not be written to standard output.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct OutputError(#[source] pub(crate) io::Error);

/// A table of left- and right-aligned columns with a heading each, for people.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

struct Column {
    heading: &'static str,
    align: Align,
}

impl Table {
    /// A table with these headings; one that begins with `>` is aligned to the right.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        let columns = headings
            .iter()
            .map(|text| match text.strip_prefix('>') {
                Some(heading) => Column {
                    heading,
                    align: Align::Right,
                },
                None => Column {
                    heading: text,
                    align: Align::Left,
                },
            })
            .collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, without a line break at its end. A cell that is far wider than usual
    /// pushes its own row to the right, not all the others.
    pub(crate) fn render(&self) -> String {
        const USUAL_WIDTH_MAX: usize = 40;
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(i));
                cells
                    .map(|cell| cell.width())
                    .filter(|width| *width <= USUAL_WIDTH_MAX)
                    .chain([column.heading.width()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |cells: Vec<&str>| {
            let mut text = String::new();
            for ((cell, column), width) in cells.iter().zip(&self.columns).zip(&widths) {
                let padding = " ".repeat(width.saturating_sub(cell.width()));
                let _ = match column.align {
                    Align::Left => write!(text, "{cell}{padding}  "),
                    Align::Right => write!(text, "{padding}{cell}  "),
                };
            }
            text.trim_end().to_owned()
        };
        let heading = line(self.columns.iter().map(|c| c.heading).collect());
        let rows = self
            .rows
            .iter()
            .map(|row| line(row.iter().map(String::as_str).collect()));
        std::iter::once(heading)
            .chain(rows)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// `name` for a terminal: what could move the cursor, hide or reorder text is spelled out.
pub(crate) fn shown(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if is_harmless(c) {
            text.push(c);
        } else {
            let _ = write!(text, "\\u{{{:x}}}", u32::from(c));
        }
    }
    if text.is_empty() {
        "\"\"".to_owned()
    } else {
        text
    }
}

/// Text of several lines for a terminal.
pub(crate) fn shown_lines(text: &str) -> String {
    text.lines().map(shown_line).collect::<Vec<_>>().join("\n")
}

fn shown_line(line: &str) -> String {
    if line.is_empty() {
        return String::new();
    }
    line.split('\t')
        .map(|part| {
            if part.is_empty() {
                String::new()
            } else {
                shown(part)
            }
        })
        .collect::<Vec<_>>()
        .join("\t")
}

/// Whether a character could mislead on a terminal.
pub(crate) fn is_hostile(c: char) -> bool {
    !is_harmless(c)
}

fn is_harmless(c: char) -> bool {
    !c.is_control()
        && (c == ' ' || !c.is_whitespace())
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// So many of something, for people: `1 pack`, `3 packs`.
pub(crate) fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    // What does not fit is no 1 either.
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// A range of the bytes of a disk, for people: `bytes 0 to 65536 (64 KiB)`, the last one not included.
pub(crate) fn bytes_range(start: u64, end: u64) -> String {
    let len = size(end.saturating_sub(start));
    format!("bytes {start} to {end} ({len})")
}

/// A size for people, in binary units: `512 B`, `64 KiB`, `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0: it belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    let text = format!("{value:.digits$}");
    let short = if digits == 1 {
        text.trim_end_matches(".0")
    } else {
        &text
    };
    format!("{short} {}", UNITS[unit])
}

/// A duration for people: `0.4 s`, `12 s`, `3 min 5 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if whole < 60 {
        format!("{whole} s")
    } else if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole % 3600 / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_write_to_the_terminal() {
        assert_eq!(shown("web server ü 日本"), "web server ü 日本");
        assert_eq!(shown("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(shown("x\u{202e}gpj"), "x\\u{202e}gpj");
        assert_eq!(shown(""), "\"\"");
        assert_eq!(shown_lines("one\n\n\ttwo\x07"), "one\n\n\ttwo\\u{7}");
    }

    #[test]
    fn sizes_are_short_and_binary() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (65536, "64 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1 MiB"),
            (8 << 30, "8 GiB"),
            (123_456_789, "118 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn one_is_singular() {
        let counts = [0_u64, 1, 2].map(|count| counted(count, "pack"));
        assert_eq!(counts, ["0 packs", "1 pack", "2 packs"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["DOMAIN", ">SIZE"]);
        table.row(["a".to_owned(), "1 KiB".to_owned()]);
        table.row(["日本-name".to_owned(), "64 KiB".to_owned()]);
        assert_eq!(
            table.render(),
            "DOMAIN       SIZE\na           1 KiB\n日本-name  64 KiB"
        );
        table.row(["x".repeat(50), "2 KiB".to_owned()]);
        assert!(table.render().starts_with("DOMAIN       SIZE\n"));
    }
}
