//! Changing an XML text in a few places while every other byte stays as it was.
//!
//! Edits are collected against the unchanged text and applied together. They never overlap: an
//! element is either replaced as a whole or edited inside.

use std::ops::Range;

use roxmltree::Node;
pub(super) use virtkeep_capture::escape_xml as escape;

/// Edits to one XML text.
#[derive(Debug)]
pub(crate) struct Splices<'t> {
    text: &'t str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'t> Splices<'t> {
    /// No edits to `text` yet.
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            edits: Vec::new(),
        }
    }

    /// Puts `new` in the place of `range`.
    pub(crate) fn replace(&mut self, range: Range<usize>, new: impl Into<String>) {
        self.edits.push((range, new.into()));
    }

    /// Replaces an element with everything in it.
    pub(crate) fn replace_element(&mut self, node: Node<'_, '_>, new: impl Into<String>) {
        self.replace(node.range(), new);
    }

    /// Removes an element, with the white space that sets it off.
    pub(crate) fn remove_element(&mut self, node: Node<'_, '_>) {
        let Range { start, end } = node.range();
        let kept = self.text[..start].trim_end_matches([' ', '\t']);
        let kept = kept.strip_suffix('\n').unwrap_or(kept);
        self.replace(kept.len()..end, "");
    }

    /// Sets an attribute, which is added when it is not there.
    pub(crate) fn set_attribute(&mut self, node: Node<'_, '_>, name: &str, value: &str) {
        let value = escape(value);
        match node.attribute_node(name) {
            Some(attribute) => self.replace(attribute.range_value(), value),
            None => {
                let after_name = node.range().start + 1 + node.tag_name().name().len();
                self.replace(after_name..after_name, format!(" {name}='{value}'"));
            }
        }
    }

    /// Removes an attribute, if it is there.
    pub(crate) fn remove_attribute(&mut self, node: Node<'_, '_>, name: &str) {
        if let Some(attribute) = node.attribute_node(name) {
            let Range { start, end } = attribute.range();
            let kept = self.text[..start].trim_end();
            self.replace(kept.len()..end, "");
        }
    }

    /// Sets the text of an element that holds text only.
    pub(crate) fn set_text(&mut self, node: Node<'_, '_>, text: &str) {
        let text = escape(text);
        match (node.first_child(), node.last_child()) {
            (Some(first), Some(last)) => {
                self.replace(first.range().start..last.range().end, text);
            }
            _ => self.insert_children(node, &text),
        }
    }

    /// Adds XML at the end of an element. At most once for one element.
    pub(crate) fn insert_children(&mut self, node: Node<'_, '_>, xml: &str) {
        if xml.is_empty() {
            return;
        }
        let range = node.range();
        let element = &self.text[range.clone()];
        if let Some(open) = element.strip_suffix("/>") {
            let slash = range.start + open.len();
            let name = node.tag_name().name();
            self.replace(slash..range.end, format!(">{xml}</{name}>"));
        } else if let Some(close) = element.rfind("</") {
            let close = range.start + close;
            self.replace(close..close, xml);
        }
    }

    /// The text with all edits.
    pub(crate) fn finish(mut self) -> String {
        self.edits
            .sort_by_key(|(range, _)| (range.start, range.end));
        let mut result = String::with_capacity(self.text.len());
        let mut at = 0;
        for (range, new) in &self.edits {
            assert!(range.start >= at, "edits never overlap");
            result.push_str(&self.text[at..range.start]);
            result.push_str(new);
            at = range.end;
        }
        result.push_str(&self.text[at..]);
        result
    }
}

/// Whether XML can hold this text at all: most control characters it cannot.
pub(crate) fn representable(text: &str) -> bool {
    text.chars().all(|c| {
        matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use roxmltree::Document;

    fn edited(text: &str, edit: impl FnOnce(&mut Splices<'_>, &Document<'_>)) -> String {
        let document = Document::parse(text).unwrap();
        let mut splices = Splices::new(text);
        edit(&mut splices, &document);
        splices.finish()
    }

    fn first<'a, 'i>(document: &'a Document<'i>, name: &str) -> Node<'a, 'i> {
        document
            .descendants()
            .find(|n| n.has_tag_name(name))
            .unwrap()
    }

    #[test]
    fn only_what_is_edited_changes() {
        let text = "<a>\n  <!-- odd  spacing -->\n  <b  x = \"1\"\ty='2'/>\n  <c>old</c>\n</a>";
        let result = edited(text, |splices, document| {
            splices.set_attribute(first(document, "b"), "x", "a'b");
            splices.set_attribute(first(document, "b"), "z", "3");
            splices.set_text(first(document, "c"), "<new>");
        });
        assert_eq!(
            result,
            "<a>\n  <!-- odd  spacing -->\n  <b z='3'  x = \"a&apos;b\"\ty='2'/>\n  <c>&lt;new&gt;</c>\n</a>"
        );
    }

    #[test]
    fn an_element_goes_with_its_line_and_an_attribute_with_its_space() {
        let text = "<a>\n  <b/>\n  <c x='1' y='2'/>\n</a>";
        let result = edited(text, |splices, document| {
            splices.remove_element(first(document, "b"));
            splices.remove_attribute(first(document, "c"), "y");
        });
        assert_eq!(result, "<a>\n  <c x='1'/>\n</a>");
    }

    #[test]
    fn children_are_added_to_open_and_to_closed_elements() {
        let text = "<a><b x='1'/><c><d/></c><e/></a>";
        let result = edited(text, |splices, document| {
            splices.insert_children(first(document, "b"), "<n/>");
            splices.insert_children(first(document, "c"), "<n/>");
            splices.set_text(first(document, "e"), "t");
        });
        assert_eq!(result, "<a><b x='1'><n/></b><c><d/><n/></c><e>t</e></a>");
    }

    #[test]
    fn control_characters_have_no_place_in_xml() {
        assert!(representable("vm ü 1\n"));
        assert!(!representable("vm\x1b"));
        assert!(!representable("vm\0"));
    }
}
