//! XML as S3 speaks it: small documents, elements and texts.
//!
//! Invariants:
//! - a document is read whole or refused: no DTD, no entity but the five of XML, a bounded depth and
//!   number of elements; sections of CDATA count as the text that they are;
//! - what is written is read back as the same text, as far as XML can say it.

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::refusal::{Refusal, refuse};

/// Deepest element.
const DEPTH_MAX: usize = 16;
/// Most elements: an upload's 10,000 parts with all that can be said of each.
const ELEMENTS_MAX: usize = 100_000;
/// S3's namespace.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// An element, with what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Its name, without a prefix.
    pub name: String,
    /// Its text, without that of its children.
    pub text: String,
    /// The elements in it.
    pub children: Vec<Element>,
    /// Its `xsi:type`, if it says one.
    pub kind: Option<String>,
}

/// What is no document, or not the one that is wanted.
pub(crate) fn malformed<T>() -> Result<T, Refusal> {
    refuse!(
        MalformedXML,
        "The XML you provided was not well-formed or did not validate against our published schema"
    )
}

impl Element {
    /// The document whose bytes these are, which is to be an element of this name.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Element, Refusal> {
        let root = parse(bytes)?;
        if root.name == name {
            Ok(root)
        } else {
            malformed()
        }
    }

    /// Refuses children that are none of these.
    pub fn only(&self, names: &[&str]) -> Result<&Element, Refusal> {
        let known = |child: &Element| names.contains(&child.name.as_str());
        if self.children.iter().all(known) {
            Ok(self)
        } else {
            malformed()
        }
    }

    /// The child of this name; an error if there are several.
    pub fn child(&self, name: &str) -> Result<Option<&Element>, Refusal> {
        let mut found = self.all(name);
        match (found.next(), found.next()) {
            (first, None) => Ok(first),
            _ => malformed(),
        }
    }

    /// The children of this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of the child of this name, which has nothing else in it.
    pub fn text_of(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.child(name)? {
            Some(child) if !child.children.is_empty() => malformed(),
            child => Ok(child.map(|child| child.text.as_str())),
        }
    }

    /// The same, of a child that must be there.
    pub fn needed(&self, name: &str) -> Result<&str, Refusal> {
        match self.text_of(name)? {
            Some(text) => Ok(text),
            None => malformed(),
        }
    }

    /// The same, of a child that is a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        match self.text_of(name)?.map(|text| text.trim().parse()) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => malformed(),
        }
    }

    /// The same, of a child that is true or false.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self
            .text_of(name)?
            .map(|text| text.trim().to_ascii_lowercase())
        {
            None => Ok(None),
            Some(text) if text == "true" => Ok(Some(true)),
            Some(text) if text == "false" => Ok(Some(false)),
            Some(_) => malformed(),
        }
    }

    /// The texts of the children of this name.
    pub fn texts(&self, name: &str) -> Vec<String> {
        self.all(name).map(|child| child.text.clone()).collect()
    }
}

fn element(start: &BytesStart<'_>) -> Result<Element, Refusal> {
    match std::str::from_utf8(start.local_name().as_ref()) {
        Ok(name) => Ok(Element {
            name: name.to_owned(),
            kind: kind(start)?,
            ..Element::default()
        }),
        Err(_) => malformed(),
    }
}

/// The type that an element says it has, whatever the prefix; other attributes say nothing here.
fn kind(start: &BytesStart<'_>) -> Result<Option<String>, Refusal> {
    for attribute in start.attributes() {
        let Ok(attribute) = attribute else {
            return malformed();
        };
        if attribute.key.local_name().as_ref() == b"type" && attribute.key.prefix().is_some() {
            return match std::str::from_utf8(&attribute.value) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => malformed(),
            };
        }
    }
    Ok(None)
}

/// The text that `&…;` stands for.
fn reference(reference: &BytesRef<'_>) -> Result<String, Refusal> {
    let name = match reference.decode() {
        Ok(name) => name,
        Err(_) => return malformed(),
    };
    match reference.resolve_char_ref() {
        Ok(Some(c)) => Ok(c.to_string()),
        Ok(None) => match resolve_xml_entity(&name) {
            Some(text) => Ok(text.to_owned()),
            None => malformed(),
        },
        Err(_) => malformed(),
    }
}

fn parse(bytes: &[u8]) -> Result<Element, Refusal> {
    let mut reader = Reader::from_reader(bytes);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut elements = 0;
    loop {
        let text = match reader.read_event() {
            Err(_) => return malformed(),
            Ok(Event::Eof) => break,
            Ok(Event::Start(start)) => {
                elements += 1;
                if open.len() >= DEPTH_MAX || elements > ELEMENTS_MAX || root.is_some() {
                    return malformed();
                }
                open.push(element(&start)?);
                continue;
            }
            Ok(Event::Empty(start)) => {
                elements += 1;
                if open.len() >= DEPTH_MAX || elements > ELEMENTS_MAX || root.is_some() {
                    return malformed();
                }
                close(element(&start)?, &mut open, &mut root);
                continue;
            }
            // That it closes what was opened, the reader has seen.
            Ok(Event::End(_)) => {
                let Some(ended) = open.pop() else {
                    return malformed();
                };
                close(ended, &mut open, &mut root);
                continue;
            }
            Ok(Event::Text(text)) => text.decode().map(|text| text.into_owned()).ok(),
            Ok(Event::CData(text)) => text.decode().map(|text| text.into_owned()).ok(),
            Ok(Event::GeneralRef(name)) => Some(reference(&name)?),
            Ok(Event::Comment(_) | Event::Decl(_) | Event::PI(_)) => continue,
            Ok(Event::DocType(_)) => return malformed(),
        };
        match (text, open.last_mut()) {
            // No document can say it, so none could be written of what has it.
            (Some(text), _) if text.contains('\0') => return malformed(),
            (Some(text), Some(element)) => element.text.push_str(&text),
            (Some(text), None) if text.trim_start_matches('\u{feff}').trim().is_empty() => {}
            _ => return malformed(),
        }
    }
    match root {
        Some(root) if open.is_empty() => Ok(root),
        _ => malformed(),
    }
}

fn close(ended: Element, open: &mut [Element], root: &mut Option<Element>) {
    match open.last_mut() {
        Some(parent) => parent.children.push(ended),
        None => *root = Some(ended),
    }
}

/// A document being written.
#[derive(Debug)]
pub struct Xml {
    out: String,
}

impl Xml {
    /// A document of an element with this name, in S3's namespace, and what `content` writes into it.
    pub fn document(name: &str, content: impl FnOnce(&mut Xml)) -> String {
        let mut xml = Xml {
            out: format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{name} xmlns=\"{NAMESPACE}\">"
            ),
        };
        content(&mut xml);
        xml.end(name);
        xml.out
    }

    /// A document of an element with a text in it.
    pub fn text_document(name: &str, text: &str) -> String {
        Xml::document(name, |xml| xml.escape(text))
    }

    /// The same without a namespace: as errors are.
    pub fn plain_document(name: &str, content: impl FnOnce(&mut Xml)) -> String {
        let mut xml = Xml {
            out: format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{name}>"),
        };
        content(&mut xml);
        xml.end(name);
        xml.out
    }

    fn end(&mut self, name: &str) {
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push('>');
    }

    /// An element with elements in it.
    pub fn element(&mut self, name: &str, content: impl FnOnce(&mut Xml)) {
        self.out.push('<');
        self.out.push_str(name);
        self.out.push('>');
        content(self);
        self.end(name);
    }

    /// An element with a type, as grantees have one.
    pub fn typed(&mut self, name: &str, kind: &str, content: impl FnOnce(&mut Xml)) {
        self.out.push_str(&format!(
            "<{name} xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"{kind}\">"
        ));
        content(self);
        self.end(name);
    }

    /// An element with a text in it.
    pub fn text(&mut self, name: &str, text: &str) {
        self.element(name, |xml| xml.escape(text));
    }

    /// The same, if there is a text.
    pub fn some(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// An element with a number in it, or whatever else is written without escapes.
    pub fn value(&mut self, name: &str, value: impl std::fmt::Display) {
        self.element(name, |xml| xml.escape(&value.to_string()));
    }

    fn escape(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '&' => self.out.push_str("&amp;"),
                '"' => self.out.push_str("&quot;"),
                '\t' | '\n' => self.out.push(c),
                // XML 1.0 cannot say most of these: that is what `encoding-type` is for.
                '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {
                    self.out.push_str(&format!("&#{};", u32::from(c)));
                }
                c => self.out.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn documents() {
        let text = b"\xef\xbb\xbf<?xml version='1.0'?><!-- c --><s3:A xmlns:s3='x'>\n \
            <B>1 &lt; 2&#x41;&#66;</B>\n\
            <B/><C><![CDATA[<raw>]]> and <D>true</D> more</C></s3:A>\n";
        let root = Element::parse(text, "A").unwrap();
        assert_eq!(root.texts("B"), ["1 < 2AB", ""]);
        let c = root.child("C").unwrap().unwrap();
        assert_eq!(c.text, "<raw> and  more");
        assert_eq!(c.flag("D"), Ok(Some(true)));
        assert!(
            root.child("B").is_err() && root.text_of("C").is_err() && root.needed("E").is_err()
        );
        assert!(root.only(&["B", "C"]).is_ok() && root.only(&["B"]).is_err());
        assert!(c.number::<u32>("D").is_err());
        assert!(Element::parse(text, "B").is_err());
    }

    #[test]
    fn what_is_refused() {
        let deep = format!("{}{}", "<a>".repeat(17), "</a>".repeat(17));
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbb\"><!ENTITY c \"&b;&b;\">]><a>&c;</a>";
        let many = format!("<a>{}</a>", "<b/>".repeat(ELEMENTS_MAX));
        for text in [
            "",
            "a",
            "<a>",
            "</a>",
            "<a>\0</a>",
            "<a><![CDATA[\0]]></a>",
            "<a></b>",
            "<a/><b/>",
            "<a/>x",
            "<a>&b;</a>",
            "<a>&#0;</a>",
            &deep,
            bomb,
            &many,
            "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
        ] {
            assert!(
                Element::parse(text.as_bytes(), "a").is_err(),
                "{}",
                text.get(..60).unwrap_or(text)
            );
        }
        assert!(Element::parse(b"<a>\xff</a>", "a").is_err());
    }

    #[test]
    fn writing() {
        let text = Xml::document("A", |xml| {
            xml.text("B", "a<&\"'\r\u{1}ä");
            xml.value("N", 5);
            xml.some("C", None);
            xml.typed("G", "CanonicalUser", |xml| xml.text("ID", "x"));
        });
        assert_eq!(
            text,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<A xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <B>a&lt;&amp;&quot;'&#13;&#1;ä</B><N>5</N>\
             <G xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
             xsi:type=\"CanonicalUser\"><ID>x</ID></G></A>"
        );
    }

    proptest! {
        #[test]
        fn there_and_back(text in "[^\\x00-\\x08\\x0b-\\x0c\\x0e-\\x1f\\x{fffe}\\x{ffff}]{0,40}") {
            let document = Xml::plain_document("A", |xml| xml.text("B", &text));
            let root = Element::parse(document.as_bytes(), "A").unwrap();
            // A line's end is one character, however it came.
            prop_assert_eq!(root.needed("B").unwrap(), text);
        }

        #[test]
        fn anything_is_taken(bytes: Vec<u8>, text in "[<>/a-c&;#! \\[\\]]{0,60}") {
            let _ = (Element::parse(&bytes, "a"), Element::parse(text.as_bytes(), "a"));
        }
    }
}
