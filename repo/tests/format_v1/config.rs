//! `config.toml`.

use std::path::Path;

use virtkeep_repo::config::Config;
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
fn unknown_settings_are_ignored() {
    assert_eq!(
        parse(&format!("colour = 'blue'\n{}", config().print())).unwrap(),
        config()
    );
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
            assert!(
                matches!(error, Error::NotARepository { .. }),
                "{key}: {error}"
            );
            assert!(error.to_string().contains(key), "{key}: {error}");
        }
    }
    assert!(matches!(
        parse("not toml at all"),
        Err(Error::NotARepository { .. })
    ));
}
