//! The names of what a backup leaves outside of the repository while it runs: checkpoints, sockets
//! and scratch files. They say whose they are, so that leftovers are recognised.

use virtkeep_repo::{DomainUuid, PointId, Repository};

/// Names for one domain and one repository.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// `virtkeep-<first 8 digits of the repository's id>-`
    prefix: String,
    /// The domain's uuid without hyphens.
    domain: String,
}

impl Names {
    pub(crate) fn new(repo: &Repository, domain: DomainUuid) -> Self {
        Self::of(&repo.id().to_string(), domain)
    }

    pub(crate) fn of(repo: &str, domain: DomainUuid) -> Self {
        let repo = repo.get(..8).unwrap_or(repo);
        Self {
            prefix: format!("virtkeep-{repo}-"),
            domain: domain.to_string().replace('-', ""),
        }
    }

    /// The checkpoint made with a point; checkpoints belong to a domain already.
    pub(crate) fn checkpoint(&self, point: PointId) -> String {
        format!("{}{point}", self.prefix)
    }

    /// Whether this repository made the checkpoint.
    pub(crate) fn is_our_checkpoint(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    /// The file name of a disk's scratch file.
    pub(crate) fn scratch(&self, point: PointId, target: &str) -> String {
        // libvirt takes almost anything for a target whose address is given.
        let target = target.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        format!("{}{point}-{}-{target}.scratch", self.prefix, self.domain)
    }

    /// The file name of the job's socket. A private directory belongs to the domain; elsewhere the
    /// name has to say which one it is.
    pub(crate) fn socket(&self, point: PointId, private: bool) -> String {
        if private {
            format!("{}{point}.sock", self.prefix)
        } else {
            format!("{}{point}-{}.sock", self.prefix, self.domain)
        }
    }

    /// Whether a backup of this domain into this repository made a file of this name.
    pub(crate) fn is_our_file(&self, file_name: &str) -> bool {
        file_name.starts_with(&self.prefix) && file_name.contains(&self.domain)
    }

    /// Whether a job that uses a file of this name backs up into this repository.
    pub(crate) fn is_our_job_file(&self, file_name: &str) -> bool {
        file_name.starts_with(&self.prefix)
    }
}

/// The text as XML content or attribute value.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            // Written out, they would be read as spaces in attributes.
            '\n' | '\r' | '\t' => escaped.push_str(&format!("&#{};", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_repositories_and_domains_apart() {
        let point = PointId::from_bytes([7; 10]);
        let one = DomainUuid::from_bytes([1; 16]);
        let two = DomainUuid::from_bytes([2; 16]);
        let ours = Names::of("aabbccdd00112233", one);
        let other_domain = Names::of("aabbccdd00112233", two);
        let other_repo = Names::of("00bbccdd00112233", one);

        let checkpoint = ours.checkpoint(point);
        assert_eq!(checkpoint, format!("virtkeep-aabbccdd-{point}"));
        assert!(ours.is_our_checkpoint(&checkpoint));
        assert!(!other_repo.is_our_checkpoint(&checkpoint));

        assert!(!ours.scratch(point, "../x").contains('/'));
        for file in [ours.scratch(point, "vda"), ours.socket(point, false)] {
            assert!(ours.is_our_file(&file), "{file}");
            assert!(!other_domain.is_our_file(&file), "{file}");
            assert!(!other_repo.is_our_file(&file), "{file}");
        }
    }

    #[test]
    fn every_text_comes_back_from_xml_as_it_was() {
        let text = "<a> & 'b' \"c\"\td\ne\rf ü";
        let xml = format!("<x y='{}'/>", escape(text));
        let document = roxmltree::Document::parse(&xml).unwrap();
        assert_eq!(document.root_element().attribute("y"), Some(text));
    }

    #[test]
    fn a_socket_in_a_private_directory_fits_into_107_bytes() {
        let names = Names::of("aabbccdd00112233", DomainUuid::from_bytes([1; 16]));
        let point = PointId::from_bytes([7; 10]);
        let private = "/var/lib/libvirt/qemu/domain-4294967-a-name-of-20-letters";
        assert!(private.len() + 1 + names.socket(point, true).len() <= 107);
        assert!("/var/lib/libvirt/qemu/".len() + names.socket(point, false).len() <= 107);
    }
}
