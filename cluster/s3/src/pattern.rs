//! Patterns of policies: `*` is anything, `?` one character, `${key}` what the request says of that key.
//!
//! Invariants:
//! - what a variable stands for is taken literally, wildcards in it included: a caller's name cannot
//!   widen a policy;
//! - a pattern with a variable that the request does not say matches nothing;
//! - matching takes at most pattern × text steps.

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
        let mut pieces = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            match piece {
                Piece::Variable { key, default } => match value(key).or_else(|| default.clone()) {
                    Some(said) => pieces.extend(said.chars().map(Piece::One)),
                    None => return false,
                },
                other => pieces.push(other.clone()),
            }
        }
        let text: Vec<char> = text.chars().collect();
        let fits = |piece: &Piece, c: char| match piece {
            Piece::AnyOne => true,
            Piece::One(one) => *one == c || case == Case::Ignored && one.eq_ignore_ascii_case(&c),
            Piece::AnyMany | Piece::Variable { .. } => false,
        };
        let (mut at, mut piece) = (0, 0);
        // Where to go on if what follows the last `*` does not fit: let that `*` take one more.
        let mut back: Option<(usize, usize)> = None;
        while at < text.len() {
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
                    None => return false,
                },
            }
        }
        pieces[piece..].iter().all(|p| *p == Piece::AnyMany)
    }
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
            prop_assert_eq!(matches(&pattern, &text), naive(&p, &t));
        }
    }

    #[test]
    fn many_stars_cost_little() {
        let pattern = "*a".repeat(2000);
        assert!(!matches(&pattern, &"a".repeat(1500)));
    }
}
