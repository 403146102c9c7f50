//! Words that the database spells: each set of them is a type of its own, and nothing decides by text.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// One set of words.
pub trait Words: Copy + PartialEq + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// As the database, the logs and the reports spell it.
    fn as_str(self) -> &'static str;

    /// The inverse of [`Words::as_str`].
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|word| word.as_str() == text)
    }
}

/// Makes an enum of words, that are written and read as they are spelled.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$word_doc])* $word,)*
        }

        impl $name {
            /// As the database, the logs and the reports spell it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$word => $text,)*
                }
            }

            /// The inverse of [`Self::as_str`].
            pub fn parse(text: &str) -> Option<$name> {
                <$name as $crate::model::Words>::parse(text)
            }
        }

        impl $crate::model::Words for $name {
            const ALL: &'static [$name] = &[$($name::$word),*];

            fn as_str(self) -> &'static str {
                $name::as_str(self)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

/// A word that the database said: one of ours, or another one. A newer release may have written that, or a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word<W> {
    Known(W),
    Other(String),
}

impl<W: Words> Word<W> {
    /// Whatever it is.
    pub fn of(text: &str) -> Word<W> {
        W::parse(text).map_or_else(|| Word::Other(text.to_owned()), Word::Known)
    }

    /// If it is one of ours.
    pub fn known(&self) -> Option<W> {
        match self {
            Word::Known(word) => Some(*word),
            Word::Other(_) => None,
        }
    }

    /// As it was said.
    pub fn as_str(&self) -> &str {
        match self {
            Word::Known(word) => word.as_str(),
            Word::Other(text) => text,
        }
    }
}

impl<W: Words> PartialEq<W> for Word<W> {
    fn eq(&self, word: &W) -> bool {
        self.known() == Some(*word)
    }
}

impl<W: Words> From<W> for Word<W> {
    fn from(word: W) -> Word<W> {
        Word::Known(word)
    }
}

impl<W: Words> fmt::Display for Word<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<W: Words> Serialize for Word<W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, W: Words> Deserialize<'de> for Word<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word<W>, D::Error> {
        String::deserialize(deserializer).map(|text| Word::of(&text))
    }
}
