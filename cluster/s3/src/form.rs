//! Forms as browsers send them (`multipart/form-data`): fields first, then a file.
//!
//! Invariants:
//! - a form is read as it comes: of its fields at most [`HEAD_MAX`] bytes are kept, of its file no more than
//!   what may be the beginning of the line that ends it;
//! - whatever is sent is a form or an error: a file that no boundary ends is none;
//! - a field's name is given once: what a policy was asked about is what is used.

use bytes::{Buf, Bytes, BytesMut};

use crate::refusal::{Code, Refusal, refuse};

/// Most bytes of a form before its file, as S3 has it.
pub const HEAD_MAX: usize = 20 * 1024;
/// Longest boundary.
const BOUNDARY_MAX: usize = 70;
/// Most fields.
const FIELDS_MAX: usize = 256;
/// The field that is the file; what stands behind it is not looked at.
const FILE: &str = "file";

/// What a form says before its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Names in lower case, and values.
    pub fields: Vec<(String, String)>,
    /// The file's name, without folders.
    pub filename: String,
}

impl Fields {
    /// A field's value; the name in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

fn malformed<T>() -> Result<T, Refusal> {
    refuse!(
        MalformedPOSTRequest,
        "The body of your POST request is not well-formed multipart/form-data."
    )
}

/// The value of a header's parameter: `form-data; name="a"; filename="b"`.
fn parameter(header: &str, name: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (key, value) = rest.split_once('=')?;
        let value = value.trim_start();
        let (text, after) = match value.strip_prefix('"') {
            Some(quoted) => {
                let mut text = String::new();
                let mut chars = quoted.char_indices();
                let end = loop {
                    match chars.next()? {
                        (at, '"') => break at,
                        // Browsers send a folder's `\` as it is, and a quote as `\"` or in percents.
                        (_, '\\') if chars.as_str().starts_with('"') => {
                            chars.next();
                            text.push('"');
                        }
                        (_, c) => text.push(c),
                    }
                };
                (text, &quoted[end + 1..])
            }
            None => {
                let end = value.find(';').unwrap_or(value.len());
                (value[..end].trim_end().to_owned(), &value[end..])
            }
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(text);
        }
        rest = after.trim_start().strip_prefix(';')?;
    }
}

/// The boundary that the `Content-Type` of a form names.
pub fn boundary(content_type: &str) -> Result<String, Refusal> {
    let kind = content_type.split(';').next().unwrap_or_default();
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return refuse!(
            PreconditionFailed,
            "Bucket POST must be of the enclosure-type multipart/form-data"
        );
    }
    match parameter(content_type, "boundary") {
        Some(found)
            if (1..=BOUNDARY_MAX).contains(&found.len())
                && found.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) =>
        {
            Ok(found)
        }
        _ => malformed(),
    }
}

/// Where `wanted`, which begins with `\r`, begins in `text`.
fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|b| *b == b'\r') {
        if text[from + at..].starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// A form's fields, on their way.
#[derive(Debug)]
pub struct FormHead {
    /// `\r\n--boundary`.
    delimiter: Vec<u8>,
    /// What came, behind the last field. It begins as if a line had ended before it.
    buffer: BytesMut,
    seen: usize,
    found: Fields,
}

/// What comes of bytes of a form.
#[derive(Debug)]
pub enum Head {
    /// More is needed.
    More(FormHead),
    /// The fields are there, and so is where the file begins.
    Whole(Fields, FormFile),
}

impl FormHead {
    /// Of a form with this boundary.
    pub fn new(boundary: &str) -> FormHead {
        FormHead {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            buffer: BytesMut::from(&b"\r\n"[..]),
            seen: 0,
            found: Fields::default(),
        }
    }

    /// Takes what came. What belongs to the file is given to [`FormFile`].
    pub fn push(mut self, bytes: &[u8]) -> Result<Head, Refusal> {
        self.buffer.extend_from_slice(bytes);
        loop {
            // The line that a field begins with, its headers, and what ends them.
            let Some(rest) = self.buffer.strip_prefix(&self.delimiter[..]) else {
                if self.delimiter.starts_with(&self.buffer) {
                    return self.more();
                }
                return malformed();
            };
            if rest.len() < 2 {
                return self.more();
            }
            if !rest.starts_with(b"\r\n") {
                // The last boundary, and there was no file.
                return match rest.starts_with(b"--") {
                    true => refuse!(
                        InvalidArgument,
                        "POST requires exactly one file upload per request."
                    ),
                    false => malformed(),
                };
            }
            let Some(headers) = find(rest, b"\r\n\r\n") else {
                return self.more();
            };
            let (name, filename) = disposition(rest.get(2..headers).unwrap_or_default())?;
            let begin = self.delimiter.len() + headers + 4;
            if name == FILE {
                self.found.filename = base_name(&filename.unwrap_or_default()).to_owned();
                self.seen += begin;
                if self.seen > HEAD_MAX {
                    return too_long();
                }
                self.buffer.advance(begin);
                let file = FormFile {
                    delimiter: self.delimiter,
                    tail: BytesMut::new(),
                    ended: false,
                    first: self.buffer.freeze(),
                };
                return Ok(Head::Whole(self.found, file));
            }
            // A field's value may be empty: then its line ends where the boundary's begins.
            let Some(len) = find(&self.buffer[begin..], &self.delimiter) else {
                return self.more();
            };
            let Ok(value) = std::str::from_utf8(&self.buffer[begin..begin + len]) else {
                return malformed();
            };
            if self.found.get(&name).is_some() || self.found.fields.len() >= FIELDS_MAX {
                return refuse!(
                    InvalidArgument,
                    "POST requires exactly one value of each form field: {name}"
                );
            }
            self.found.fields.push((name, value.to_owned()));
            self.seen += begin + len;
            self.buffer.advance(begin + len);
            if self.seen > HEAD_MAX {
                return too_long();
            }
        }
    }

    fn more(self) -> Result<Head, Refusal> {
        if self.seen + self.buffer.len() > HEAD_MAX {
            return too_long();
        }
        Ok(Head::More(self))
    }
}

fn too_long<T>() -> Result<T, Refusal> {
    Err(Refusal::new(
        Code::MaxPostPreDataLengthExceededError,
        "Your POST request fields preceding the upload file were too large.",
    ))
}

/// The name of a field, and of its file, if it is one.
fn disposition(headers: &[u8]) -> Result<(String, Option<String>), Refusal> {
    let Ok(headers) = std::str::from_utf8(headers) else {
        return malformed();
    };
    for line in headers.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            return malformed();
        };
        if name.trim().eq_ignore_ascii_case("content-disposition") {
            let kind = value.split(';').next().unwrap_or_default();
            return match parameter(value, "name") {
                Some(name) if kind.trim().eq_ignore_ascii_case("form-data") => {
                    Ok((name.to_lowercase(), parameter(value, "filename")))
                }
                _ => malformed(),
            };
        }
    }
    malformed()
}

/// A file's name without the folders that some browsers tell.
fn base_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or_default()
}

/// A form's file, on its way.
#[derive(Debug)]
pub struct FormFile {
    delimiter: Vec<u8>,
    /// What may be the beginning of the line that ends the file.
    tail: BytesMut,
    ended: bool,
    /// What came of it together with the fields.
    first: Bytes,
}

impl FormFile {
    /// What came of the file together with the fields: to be pushed first.
    pub fn first(&mut self) -> Bytes {
        std::mem::take(&mut self.first)
    }

    /// Takes what came, and gives what certainly is the file's. What stands behind the file is dropped.
    pub fn push(&mut self, bytes: Bytes, out: &mut Vec<Bytes>) {
        if self.ended {
            return;
        }
        let mut bytes = match self.tail.is_empty() {
            true => bytes,
            // At most as long as a boundary, and what came: pieces are copied where a line may end it only.
            false => {
                self.tail.extend_from_slice(&bytes);
                std::mem::take(&mut self.tail).freeze()
            }
        };
        if let Some(at) = find(&bytes, &self.delimiter) {
            self.ended = true;
            bytes.truncate(at);
        } else {
            let kept = self.may_end(&bytes);
            self.tail
                .extend_from_slice(&bytes.split_off(bytes.len() - kept));
        }
        if !bytes.is_empty() {
            out.push(bytes);
        }
    }

    /// How many of the last bytes may begin the line that ends the file.
    fn may_end(&self, bytes: &[u8]) -> usize {
        let most = bytes.len().min(self.delimiter.len() - 1);
        let begins = |n: &usize| self.delimiter.starts_with(&bytes[bytes.len() - n..]);
        (1..=most).rev().find(begins).unwrap_or(0)
    }

    /// Nothing more comes.
    pub fn end(&self) -> Result<(), Refusal> {
        match self.ended {
            true => Ok(()),
            false => malformed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; charset=utf-8; boundary=\"xyz\"";

    /// Reads a form that comes in pieces of so many bytes.
    fn read(text: &[u8], piece: usize) -> Result<(Fields, Vec<u8>), Code> {
        let code = |refusal: Refusal| refusal.code;
        let mut head = FormHead::new(&boundary(TYPE).map_err(code)?);
        let mut pieces = text.chunks(piece.max(1));
        let (fields, mut file) = loop {
            let Some(bytes) = pieces.next() else {
                return Err(Code::IncompleteBody);
            };
            match head.push(bytes).map_err(code)? {
                Head::More(more) => head = more,
                Head::Whole(fields, file) => break (fields, file),
            }
        };
        let mut out = Vec::new();
        let first = file.first();
        file.push(first, &mut out);
        for bytes in pieces {
            file.push(Bytes::copy_from_slice(bytes), &mut out);
        }
        file.end().map_err(code)?;
        Ok((fields, out.concat()))
    }

    fn field(name: &str, value: &str) -> String {
        format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    }

    fn file(name: &str, text: &str) -> String {
        format!(
            "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: text/plain\r\n\r\n{text}\r\n--xyz--\r\n"
        )
    }

    #[test]
    fn boundaries() {
        for (text, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data;boundary=\"a b\"", Some("a b")),
            ("multipart/form-data; a=b; Boundary=x;c=d", Some("x")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"", None),
            ("text/plain; boundary=x", None),
            ("", None),
        ] {
            assert_eq!(boundary(text).ok().as_deref(), expected, "{text}");
        }
        let code = boundary("text/plain").unwrap_err().code;
        assert_eq!(code, Code::PreconditionFailed);
        assert!(boundary(&format!("multipart/form-data; boundary={}", "x".repeat(71))).is_err());
    }

    #[test]
    fn forms_in_pieces_of_any_length() {
        let text = "\r\n--xy\r\r\n--x\r\nfile\r\n-";
        let form = field("Key", "a ä") + &field("empty", "") + &file("C:\\d\\a\\\"b.txt", text);
        for piece in 1..form.len() {
            let (fields, file) = read(form.as_bytes(), piece).unwrap();
            assert_eq!(fields.get("key"), Some("a ä"), "{piece}");
            assert_eq!(fields.get("empty"), Some(""));
            assert_eq!(fields.filename, "a\"b.txt");
            assert_eq!(file, text.as_bytes(), "{piece}");
        }
        // What stands behind the file is not looked at.
        let more = file("a", "b").replace("--xyz--", "--xyz") + &field("key", "c");
        let (fields, file) = read(more.as_bytes(), 7).unwrap();
        assert_eq!((fields.fields.len(), &file[..]), (0, &b"b"[..]));
    }

    #[test]
    fn what_is_no_form() {
        let code = |text: &str| read(text.as_bytes(), 1000).unwrap_err();
        assert_eq!(
            code(&(field("a", "b") + "--xyz--\r\n")),
            Code::InvalidArgument
        );
        assert_eq!(
            code(&(field("a", "b") + &field("A", "c") + &file("f", "x"))),
            Code::InvalidArgument
        );
        for bad in [
            "hello",
            "--xyzz\r\n\r\n\r\n",
            "--xyz\r\nContent-Disposition: attachment; name=\"a\"\r\n\r\nb",
            "--xyz\r\nContent-Disposition: form-data\r\n\r\nb",
            "--xyz\r\nContent-Type: a/b\r\n\r\nb",
            "--xyz\r\nno header\r\n\r\nb",
        ] {
            assert_eq!(code(bad), Code::MalformedPOSTRequest, "{bad}");
        }
        let cut = file("a", "text");
        assert_eq!(code(&cut[..cut.len() - 10]), Code::MalformedPOSTRequest);
        let long = field("a", &"x".repeat(HEAD_MAX)) + &file("f", "x");
        for piece in [1, 100, long.len()] {
            assert_eq!(
                read(long.as_bytes(), piece).unwrap_err(),
                Code::MaxPostPreDataLengthExceededError
            );
        }
    }

    proptest! {
        /// Whatever comes, nothing panics; and a file is what was sent.
        #[test]
        fn whatever_comes(text in "[-\r\nxyz:;=\"a ]{0,200}", piece in 1usize..40) {
            let _ = read(text.as_bytes(), piece);
            let _ = read(format!("--xyz\r\nContent-Disposition: form-data; {text}").as_bytes(), piece);
            let _ = boundary(&format!("multipart/form-data{text}"));
            prop_assume!(!format!("\r\n{text}").contains("\r\n--xyz"));
            let form = file("f", &text);
            prop_assert_eq!(read(form.as_bytes(), piece).unwrap().1, text.as_bytes());
        }
    }
}
