//! The guest agent of a guest on trial.

use roxmltree::Document;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virtkeep_repo::FileRole;

use crate::restore::directory::RestoredFile;

/// What is known of the agent before the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agent {
    /// It was there when the point was made, so it must come back.
    Expected,
    /// It has a channel; whether anybody is at its other end nobody knows.
    Possible,
    /// It has no channel.
    None,
}

impl Agent {
    /// As the point's definitions tell.
    pub(super) fn of(files: &[RestoredFile]) -> Self {
        let of = |role| files.iter().find(move |file| file.role == role);
        let channel = |role| of(role).and_then(|file| channel(&file.content));
        match (channel(FileRole::LiveXml), channel(FileRole::DomainXml)) {
            (Some(Channel { connected: true }), _) => Self::Expected,
            (None, None) => Self::None,
            _ => Self::Possible,
        }
    }

    /// Whether it answers.
    pub(super) fn answers(self, domain: &Domain) -> bool {
        if self == Self::None {
            return false;
        }
        match domain.time(0) {
            Ok(_) => true,
            // It does not tell the time, but says so.
            Err(error) => error.code() == ErrorNumber::AgentCommandFailed.into(),
        }
    }
}

/// The channel to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Channel {
    connected: bool,
}

fn channel(xml: &[u8]) -> Option<Channel> {
    let xml = String::from_utf8_lossy(xml);
    let document = Document::parse(&xml).ok()?;
    let mut nodes = document.descendants();
    let target = nodes.find(|node| {
        node.has_tag_name("target") && node.attribute("name") == Some("org.qemu.guest_agent.0")
    })?;
    let connected = target.attribute("state") == Some("connected");
    Some(Channel { connected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_expected_if_it_was_there_when_the_point_was_made() {
        let xml = |state: &str| {
            format!(
                "<domain><devices><channel type='unix'><target type='virtio' \
                 name='org.qemu.guest_agent.0'{state}/></channel></devices></domain>"
            )
        };
        let file = |role, content: &str| RestoredFile {
            role,
            name: String::new(),
            path: "/".into(),
            content: content.as_bytes().to_vec(),
        };
        let defined = file(FileRole::DomainXml, &xml(""));
        let live = |state: &str| file(FileRole::LiveXml, &xml(state));
        for (state, agent) in [
            (" state='connected'", Agent::Expected),
            (" state='disconnected'", Agent::Possible),
        ] {
            let files = [live(state), file(FileRole::DomainXml, &xml(""))];
            assert_eq!(Agent::of(&files), agent, "{state}");
        }
        assert_eq!(Agent::of(&[defined]), Agent::Possible);
        let without = file(FileRole::DomainXml, "<domain><devices/></domain>");
        assert_eq!(Agent::of(&[without]), Agent::None);
    }
}
