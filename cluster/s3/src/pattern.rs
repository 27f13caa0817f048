//! Patterns of policies: `*` is anything, `?` one character, `${key}` what the request says of that key.
//!
//! Invariants:
//! - what a variable stands for is taken literally, wildcards in it included: a caller's name cannot
//!   widen a policy;
//! - a pattern with a variable that the request does not say matches nothing;
//! - matching takes time in proportion to pattern and text; where a pattern is made to take more, pattern × text / 64:
//!   policies are written by whoever has a bucket, and texts come from whoever sends a request.

use std::collections::HashMap;

/// A piece of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    One(char),
    AnyOne,
    AnyMany,
    Variable {
        key: String,
        default: Option<String>,
    },
}

/// A pattern, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    pieces: Vec<Piece>,
}

/// How texts are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// `a` is not `A`.
    Kept,
    /// `a` is `A`, in ASCII.
    Ignored,
}

impl Pattern {
    /// With wildcards and, if `variables`, variables.
    pub fn new(text: &str, variables: bool) -> Pattern {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            if variables
                && let Some(inner) = rest.strip_prefix("${")
                && let Some(end) = inner.find('}')
            {
                pieces.push(variable(&inner[..end]));
                rest = &inner[end + 1..];
                continue;
            }
            pieces.push(match next {
                '*' => Piece::AnyMany,
                '?' => Piece::AnyOne,
                other => Piece::One(other),
            });
            rest = &rest[next.len_utf8()..];
        }
        Pattern { pieces }
    }

    /// Without wildcards.
    pub fn exact(text: &str, variables: bool) -> Pattern {
        let mut pattern = Pattern::new(text, variables);
        for piece in &mut pattern.pieces {
            match piece {
                Piece::AnyMany => *piece = Piece::One('*'),
                Piece::AnyOne => *piece = Piece::One('?'),
                Piece::One(_) | Piece::Variable { .. } => {}
            }
        }
        pattern
    }

    /// Whether it has neither wildcards nor variables.
    pub fn is_fixed(&self) -> bool {
        self.pieces.iter().all(|p| matches!(p, Piece::One(_)))
    }

    /// The keys of its variables.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Variable { key, .. } => Some(key.as_str()),
            _ => None,
        })
    }

    /// Whether `text` fits. `value` is what the request says of a variable's key.
    pub fn matches(&self, text: &str, case: Case, value: impl Fn(&str) -> Option<String>) -> bool {
        let text: Vec<char> = text.chars().collect();
        let mut pieces = Vec::with_capacity(self.pieces.len());
        // Each piece but a star takes one character: with more of them than there are, it does not fit, whatever else
        // is said. So what variables stand for is no longer than that.
        let mut takes = 0;
        for piece in &self.pieces {
            match piece {
                Piece::AnyMany => pieces.push(Piece::AnyMany),
                Piece::Variable { key, default } => match value(key).or_else(|| default.clone()) {
                    Some(said) => {
                        takes += said.chars().count();
                        if takes > text.len() {
                            return false;
                        }
                        pieces.extend(said.chars().map(Piece::One));
                    }
                    None => return false,
                },
                one => {
                    takes += 1;
                    pieces.push(one.clone());
                }
            }
        }
        if takes > text.len() {
            return false;
        }
        let bound = STEPS * (pieces.len() + text.len() + 1);
        match directly(&pieces, &text, case, bound) {
            Some(matched) => matched,
            None => by_sets(&pieces, &text, case),
        }
    }
}

/// So many steps for each character of pattern and text; more are not worth it.
const STEPS: usize = 8;

/// Whether `text` fits, found by trying: a star that took too little takes one more. None after so many steps.
fn directly(pieces: &[Piece], text: &[char], case: Case, bound: usize) -> Option<bool> {
    let fits = |piece: &Piece, c: char| match piece {
        Piece::AnyOne => true,
        Piece::One(one) => *one == c || case == Case::Ignored && one.eq_ignore_ascii_case(&c),
        Piece::AnyMany | Piece::Variable { .. } => false,
    };
    let (mut at, mut piece, mut steps) = (0, 0, 0);
    // Where to go on if what follows the last `*` does not fit: let that `*` take one more.
    let mut back: Option<(usize, usize)> = None;
    while at < text.len() {
        steps += 1;
        if steps > bound {
            return None;
        }
        match pieces.get(piece) {
            Some(Piece::AnyMany) => {
                back = Some((piece + 1, at));
                piece += 1;
            }
            Some(other) if fits(other, text[at]) => {
                (at, piece) = (at + 1, piece + 1);
            }
            _ => match &mut back {
                Some((behind, taken)) => {
                    *taken += 1;
                    (piece, at) = (*behind, *taken);
                }
                None => return Some(false),
            },
        }
    }
    Some(pieces[piece..].iter().all(|p| *p == Piece::AnyMany))
}

/// The same, with all places of the pattern that the text so far can have come to, as bits: 64 of them take a step at
/// once (the "shift-and" of Baeza-Yates and Gonnet, 1992, with places that a star lets stay).
fn by_sets(pieces: &[Piece], text: &[char], case: Case) -> bool {
    let folded = |c: char| match case {
        Case::Kept => c,
        Case::Ignored => c.to_ascii_lowercase(),
    };
    let words = pieces.len() / 64 + 1;
    let set = |bits: &mut Vec<u64>, place: usize| bits[place / 64] |= 1 << (place % 64);
    let (mut any, mut stay) = (vec![0; words], vec![0; words]);
    let mut of: HashMap<char, Vec<u64>> = HashMap::new();
    let mut end = 0;
    for piece in pieces {
        match piece {
            Piece::AnyMany => {
                set(&mut stay, end);
                continue;
            }
            Piece::AnyOne => set(&mut any, end),
            Piece::One(one) => {
                let bits = of.entry(folded(*one)).or_insert_with(|| vec![0; words]);
                set(bits, end);
            }
            Piece::Variable { .. } => {}
        }
        end += 1;
    }
    let mut places = vec![0; words];
    set(&mut places, 0);
    for c in text {
        let fits = of.get(&folded(*c));
        let mut carry = 0;
        for (word, place) in places.iter_mut().enumerate() {
            let fits = any[word] | fits.map_or(0, |bits| bits[word]);
            let goes = *place & fits;
            *place = (goes << 1) | carry | (*place & stay[word]);
            carry = goes >> 63;
        }
    }
    places[end / 64] & (1 << (end % 64)) != 0
}

/// `${key}`, `${key, 'default'}`, and the three that stand for a character.
fn variable(inner: &str) -> Piece {
    if let "*" | "?" | "$" = inner {
        return Piece::One(inner.chars().next().unwrap_or('$'));
    }
    let (key, default) = match inner.split_once(',') {
        Some((key, default)) => {
            let default = default.trim();
            let default = default
                .strip_prefix('\'')
                .and_then(|d| d.strip_suffix('\''));
            (key.trim(), default.map(str::to_owned))
        }
        None => (inner.trim(), None),
    };
    Piece::Variable {
        key: key.to_ascii_lowercase(),
        default,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let said = |key: &str| (key == "aws:username").then(|| "a*".to_owned());
        Pattern::new(pattern, true).matches(text, Case::Kept, said)
    }

    #[test]
    fn wildcards() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "a/b"),
            ("a*c", "abc"),
            ("a*c", "ac"),
            ("a*b*c", "aXbYbZc"),
            ("a?c", "aäc"),
            ("**a", "bba"),
            ("home/${aws:username}/*", "home/a*/x"),
            ("${*}", "*"),
            ("${?}${$}", "?$"),
            ("${aws:other, 'none'}", "none"),
            ("${unended", "${unended"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("a*c", "abd"),
            ("a?c", "ac"),
            ("A", "a"),
            ("home/${aws:username}/*", "home/ab/x"),
            ("${aws:other}", ""),
            ("${*}", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        let star = Pattern::exact("a*", true);
        assert!(star.matches("a*", Case::Kept, |_| None));
        assert!(!star.matches("ab", Case::Kept, |_| None));
        assert!(Pattern::new("S3:Get*", false).matches("s3:getObject", Case::Ignored, |_| None));
    }

    /// The same by trying everything.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some('*'), _) => {
                naive(&pattern[1..], text) || !text.is_empty() && naive(pattern, &text[1..])
            }
            (Some('?'), Some(_)) => naive(&pattern[1..], &text[1..]),
            (Some(a), Some(b)) => a == b && naive(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn as_the_naive_one(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            let expected = naive(&p, &t);
            prop_assert_eq!(matches(&pattern, &text), expected);
            let pieces = Pattern::new(&pattern, true).pieces;
            prop_assert_eq!(by_sets(&pieces, &t, Case::Kept), expected);
            prop_assert_eq!(directly(&pieces, &t, Case::Kept, 1000), Some(expected));
        }

        /// Over the ends of words, and whatever the case.
        #[test]
        fn one_way_as_the_other(
            pattern in "[abA*]{0,30}[ab]{50,140}[AB*?]{0,8}",
            text in "[abAB]{0,300}",
            fill in 0usize..3,
        ) {
            let text = match fill {
                0 => text,
                1 => pattern.replace('*', &text).replace('?', "b"),
                _ => pattern.replace(['*', '?'], "a").to_ascii_uppercase(),
            };
            let text: Vec<char> = text.chars().collect();
            let pieces = Pattern::new(&pattern, true).pieces;
            for case in [Case::Kept, Case::Ignored] {
                let expected = directly(&pieces, &text, case, usize::MAX);
                prop_assert_eq!(expected, Some(by_sets(&pieces, &text, case)));
            }
        }
    }

    #[test]
    fn many_stars_cost_little() {
        let pattern = "*a".repeat(2000);
        assert!(!matches(&pattern, &"a".repeat(1500)));
        // And what is tried at each place, and fails at its end.
        let pattern = format!("*{}b", "a".repeat(19_000));
        let text = "a".repeat(60_000);
        let pieces = Pattern::new(&pattern, true).pieces;
        let chars: Vec<char> = text.chars().collect();
        let bound = STEPS * (pieces.len() + chars.len() + 1);
        assert_eq!(directly(&pieces, &chars, Case::Kept, bound), None);
        assert!(!matches(&pattern, &text));
        assert!(matches(&pattern, &format!("{text}b")));
        // Nor do variables that stand for much, many times.
        let many = Pattern::new(&"${aws:useragent}".repeat(1200), true);
        let said = "a".repeat(4096);
        let asked = std::cell::Cell::new(0);
        let value = |_: &str| {
            asked.set(asked.get() + 1);
            Some(said.clone())
        };
        assert!(!many.matches(&said, Case::Kept, value));
        assert_eq!(asked.get(), 2, "as much as fits, and one more");
        let one = Pattern::new("*${aws:useragent}*", true);
        assert!(one.matches(&said, Case::Kept, value));
    }
}
