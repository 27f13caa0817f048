//! Blanks out what is not code: comments, the contents of strings, and test modules.
//!
//! Invariant: the result has as many lines as the source, and what is left stands where it stood,
//! so that a finding's line is the source's line.

/// The source with comments and the contents of strings and character literals blanked.
pub fn without_text(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let chars: Vec<char> = source.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => block_comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' | 'b' | 'c' if !follows_name(&chars, at) => {
                raw_string_end(&chars, at).unwrap_or(at)
            }
            '\'' => char_end(&chars, at).unwrap_or(at),
            _ => at,
        };
        if end > at {
            out.extend(
                chars[at..end]
                    .iter()
                    .map(|c| if *c == '\n' { '\n' } else { ' ' }),
            );
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// The scrubbed source with every item under a `#[cfg(test)]` blanked too.
pub fn without_tests(source: &str) -> String {
    let scrubbed = without_text(source);
    let mut out: Vec<char> = scrubbed.chars().collect();
    let marker: Vec<char> = "#[cfg(test)]".chars().collect();
    let mut at = 0;
    while at + marker.len() <= out.len() {
        if out[at..at + marker.len()] == marker[..] {
            let end = item_end(&out, at + marker.len());
            out[at..end]
                .iter_mut()
                .filter(|c| **c != '\n')
                .for_each(|c| *c = ' ');
            at = end;
        } else {
            at += 1;
        }
    }
    out.into_iter().collect()
}

/// The places where `word` stands as a whole path or word, as (line from 1).
pub fn lines_with(scrubbed: &str, word: &str) -> Vec<usize> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (index, line) in scrubbed.lines().enumerate() {
        let hit = line.match_indices(word).any(|(start, _)| {
            let before = line[..start].chars().next_back();
            let after = line[start + word.len()..].chars().next();
            let open_ended = word.ends_with(':') || word.ends_with('!');
            !before.is_some_and(is_name) && (open_ended || !after.is_some_and(is_name))
        });
        if hit {
            found.push(index + 1);
        }
    }
    found
}

fn follows_name(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..]
        .iter()
        .position(|c| *c == '\n')
        .map_or(chars.len(), |n| at + n)
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0usize, start);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// The end of `r"…"`, `r#"…"#`, `b"…"`, `br#"…"#`, `c"…"` that starts at `at`, if one does.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let mut open = at;
    let mut raw = false;
    while let Some(c @ ('r' | 'b' | 'c')) = chars.get(open).copied() {
        raw |= c == 'r';
        open += 1;
        if open - at > 2 {
            return None;
        }
    }
    let hashes = chars[open..].iter().take_while(|c| **c == '#').count();
    if chars.get(open + hashes) != Some(&'"') {
        return None;
    }
    if !raw {
        return (hashes == 0).then(|| string_end(chars, open));
    }
    let mut end = open + hashes + 1;
    while end < chars.len() {
        if chars[end] == '"' && chars[end + 1..].iter().take_while(|c| **c == '#').count() >= hashes
        {
            return Some(end + 1 + hashes);
        }
        end += 1;
    }
    Some(chars.len())
}

/// The end of a character literal; a lifetime is none.
fn char_end(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        let close = chars.get(at + 3..)?.iter().position(|c| *c == '\'')?;
        return Some(at + 3 + close + 1);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(at + 3)
}

/// The end of the item that follows an attribute: its closing brace, or its semicolon.
fn item_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0i32, start);
    while at < chars.len() {
        match chars[at] {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if depth <= 0 && chars[at] == '}' {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    chars.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_blanked_and_lines_stay() {
        let source = "let a = \"unsafe\\\" // no\"; // unsafe\n/* unsafe\n */ let b = 'u';\n\
            let r = r#\"unsafe \"x\" \"#; f::<'a>();\n";
        let clean = without_text(source);
        assert_eq!(clean.lines().count(), source.lines().count());
        assert!(!clean.contains("unsafe"), "{clean}");
        assert!(
            clean.contains("let b =") && clean.contains("f::<'a>()"),
            "{clean}"
        );
    }

    #[test]
    fn test_items_are_blanked() {
        let source = "fn f() {}\n#[cfg(test)]\nmod tests {\n    fn g() { Instant::now(); }\n}\n\
            fn h() {}\n#[cfg(test)]\nuse std::fs;\nfn i() {}\n";
        let clean = without_tests(source);
        assert!(clean.contains("fn f()") && clean.contains("fn h()") && clean.contains("fn i()"));
        assert!(
            !clean.contains("now") && !clean.contains("std::fs"),
            "{clean}"
        );
        assert_eq!(clean.lines().count(), source.lines().count());
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(
            lines_with("a\nunsafe {\nunsafe_code\nmy_unsafe\n", "unsafe"),
            [2]
        );
        assert_eq!(
            lines_with("use std::fs::File;\nx_std::fs;\n", "std::fs"),
            [1]
        );
        assert_eq!(lines_with("rand::rng();\nerand::x();\n", "rand::"), [1]);
    }
}
