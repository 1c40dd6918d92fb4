//! Names for the files of a restore, whatever the names in the point are.

use virtkeep_repo::{FileRole, StoredFile};

/// Bytes of a file name that are surely allowed, with room for a temporary affix.
const NAME_BYTES_MAX: usize = 200;

/// A file name made of `text`: what could leave the directory, hide the file or upset a terminal is
/// written as `%XX`.
pub(crate) fn safe(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars() {
        let hidden = c == '.' && name.is_empty();
        if hidden || c == '/' || c == '%' || crate::output::is_hostile(c) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                name += &format!("%{byte:02X}");
            }
        } else {
            name.push(c);
        }
    }
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    if name.is_empty() {
        "unnamed".to_owned()
    } else {
        name
    }
}

/// What a file kept with a point is called beside the disks; nothing for those not restored.
pub(crate) fn stored_file(file: &StoredFile) -> Option<String> {
    Some(match file.role {
        FileRole::DomainXml => "domain.xml".to_owned(),
        FileRole::LiveXml => "domain-live.xml".to_owned(),
        FileRole::NetworkXml => format!("network-{}.xml", safe(&file.name)),
        FileRole::Nvram => "nvram.fd".to_owned(),
        FileRole::Loader => "loader.fd".to_owned(),
        FileRole::Kernel => "kernel".to_owned(),
        FileRole::Initrd => "initrd".to_owned(),
        FileRole::Tpm => format!("tpm-{}", safe(&file.name)),
        FileRole::Unknown => format!("file-{}", safe(&file.name)),
        FileRole::Log => return None,
    })
}

/// Makes names that occur more than once different: `a.xml`, `a-2.xml`.
pub(crate) fn unique(name: String, taken: &mut Vec<String>) -> String {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) => (stem, format!(".{extension}")),
        None => (name.as_str(), String::new()),
    };
    let unique = std::iter::once(name.clone())
        .chain((2..).map(|n| format!("{stem}-{n}{extension}")))
        .find(|candidate| !taken.contains(candidate))
        .unwrap_or(name);
    taken.push(unique.clone());
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_in_their_directory() {
        assert_eq!(safe("vda"), "vda");
        assert_eq!(safe(".."), "%2E.");
        assert_eq!(safe("../../etc/passwd"), "%2E.%2F..%2Fetc%2Fpasswd");
        assert_eq!(safe("a\nb\x1b"), "a%0Ab%1B");
        assert_eq!(safe("100%"), "100%25");
        assert_eq!(safe("dünn 日本"), "dünn 日本");
        assert_eq!(safe(""), "unnamed");
        assert_eq!(safe("ab/"), "ab%2F");
        assert!(safe(&"日".repeat(300)).len() <= 200);
    }

    #[test]
    fn equal_names_get_numbers() {
        let mut taken = Vec::new();
        let names = ["a.xml", "a.xml", "a.xml", "b"].map(|n| unique(n.to_owned(), &mut taken));
        assert_eq!(names, ["a.xml", "a-2.xml", "a-3.xml", "b"]);
    }
}
