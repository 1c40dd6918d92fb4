//! `config.toml`.

use std::path::Path;

use virtkeep_repo::config::{Config, unknown_keys};
use virtkeep_repo::format::geometry::FanOut;
use virtkeep_repo::{Codec, Error, RepoId};

use super::{chunk_size, id_key};

fn config() -> Config {
    let id = RepoId::from_bytes([0xab; 16]);
    Config::new(id, id_key(), chunk_size(), FanOut::DEFAULT, Codec::Zstd(5))
}

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text, Path::new("/backup"))
}

/// The printed settings with one line replaced.
fn with(key: &str, line: &str) -> String {
    let text = config().print();
    let old = text
        .lines()
        .find(|old| old.starts_with(&format!("{key} =")))
        .unwrap_or_else(|| panic!("no setting {key}"));
    text.replace(old, line)
}

#[test]
fn settings_are_read_as_they_were_printed() {
    let read = parse(&config().print()).unwrap();
    assert_eq!(read, config());
    assert!(read.check_writable().is_ok());
}

#[test]
fn a_newer_version_is_named_whatever_else_the_file_holds() {
    let error = parse("format_version = 7\nnew = 'world'").unwrap_err();
    assert!(
        matches!(error, Error::NewerFormat { found: 7, known: 1 }),
        "{error}"
    );
}

#[test]
fn an_unknown_incompatible_feature_is_named() {
    let text = with(
        "incompatible_features",
        r#"incompatible_features = ["sealed"]"#,
    );
    let error = parse(&text).unwrap_err();
    assert!(
        matches!(&error, Error::UnknownFeature { feature } if feature == "sealed"),
        "{error}"
    );
}

#[test]
fn an_unknown_read_only_compatible_feature_allows_reading_and_refuses_writing() {
    let key = "read_only_compatible_features";
    let config = parse(&with(key, &format!(r#"{key} = ["ledger"]"#))).unwrap();
    let error = config.check_writable().unwrap_err();
    assert!(
        matches!(&error, Error::UnknownFeature { feature } if feature == "ledger"),
        "{error}"
    );
    assert_eq!(parse(&config.print()).unwrap(), config);
}

#[test]
fn encryption_and_other_hashes_are_refused() {
    let encrypted = config().print() + "cipher = 'some'\n";
    assert!(matches!(
        parse(&encrypted),
        Err(Error::UnknownFeature { .. })
    ));
    let hashed = with("hash", "hash = 'sha256'");
    assert!(matches!(parse(&hashed), Err(Error::UnknownFeature { .. })));
}

#[test]
fn unknown_settings_are_ignored_and_named() {
    let text = with("codec", "codec = \"zstd:5\"\ncolour = 'blue'");
    assert_eq!(parse(&text).unwrap(), config());
    let line = text.lines().position(|line| line.starts_with("colour"));
    let line = line.unwrap() + 1;
    assert_eq!(unknown_keys(&text), [("colour".to_owned(), line)]);
    assert_eq!(unknown_keys(&config().print()), []);
}

#[test]
fn a_mistake_is_told_with_its_line_and_what_is_right() {
    let error = |text: &str| parse(text).unwrap_err().to_string();
    let line = |text: &str, start: &str| {
        let at = text.lines().position(|line| line.starts_with(start));
        format!("/backup, line {}: ", at.unwrap() + 1)
    };
    let text = with("codec", "codec = \"zstdd\"");
    let codec = error(&text);
    assert!(codec.starts_with(&line(&text, "codec")), "{codec}");
    assert!(
        codec.contains(r#"codec cannot be "zstdd". It may be "lz4""#),
        "{codec}"
    );
    let text = with("append_only", "append_only = flase");
    let broken = error(&text);
    assert!(broken.starts_with(&line(&text, "append_only")), "{broken}");
    let text = with("chunk_size", "chunk_size = 65537");
    let fixed = error(&text);
    assert!(fixed.starts_with(&line(&text, "chunk_size")), "{fixed}");
    assert!(fixed.contains("Put a copy of the file back"), "{fixed}");
    assert!(error("").contains("it is empty"));
}

#[test]
fn every_missing_or_wrong_setting_is_named() {
    let cases = [
        ("format_version", "'1'"),
        ("repository_id", "'12'"),
        ("hash", "1"),
        ("id_key", "'00'"),
        ("chunk_size", "65537"),
        ("fan_out", "128"),
        ("codec", "'gzip'"),
        ("incompatible_features", "'none'"),
        ("read_only_compatible_features", "[1]"),
        ("index_owner", "-1"),
        ("append_only", "'no'"),
    ];
    for (key, wrong) in cases {
        for text in [with(key, ""), with(key, &format!("{key} = {wrong}"))] {
            let error = parse(&text).unwrap_err();
            assert!(matches!(error, Error::Settings { .. }), "{key}: {error}");
            assert!(error.to_string().contains(key), "{key}: {error}");
        }
    }
    assert!(matches!(
        parse("not toml at all"),
        Err(Error::Settings { .. })
    ));
}
