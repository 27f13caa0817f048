//! Engines that do one thing wrong: some layer of the tests must notice each of them. `cargo xtask mutants` tells
//! which.
//!
//! Each changes one line of behaviour, and exists only with the feature `mutants`: whoever drives
//! the engines chooses the one that runs; tests take it from the variable `ASHLAR_MUTANT`.

/// What an engine does wrong.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A batch of several writes is acknowledged without the flush behind it.
    SkipFlush,
    /// A batch is acknowledged when the first of its writes is done.
    AcknowledgeEarly,
    /// A write that is to be durable is handed out as one that need not be.
    WriteNotDurable,
    /// Recovery takes a record for whole whose payload does not match its checksum.
    TrustLength,
    /// A read gives out pieces without comparing their checksums.
    DropReadCheck,
    /// An extent that is opened again has the life number of the one before.
    ReuseIncarnation,
    /// An extent is free when its own records are dead, although its tombstones still keep others so.
    FreeTombstones,
    /// Recovery does not mind tombstones.
    Resurrect,
    /// A cleaned extent is erased while copies of its records are still on their way.
    EraseEarly,
    /// The index points to a copy as soon as that is handed out.
    TurnIndexEarly,
    /// The tombstones of a cleaned extent are not written again.
    ForgetTombstones,
    /// A record is copied though it does not match.
    CopyUnchecked,
    /// A shard is copied though it is being deleted.
    CopyDeleted,
    /// While part of the device cannot be read, a tombstone is kept only for what can.
    ForgetUnseen,
    /// The same, of those that stood there when the device was opened.
    ForgetGraves,
    /// Extents are cleaned though part of the device cannot be read.
    CleanUnseen,
    /// A tombstone is written again though its shard is there again.
    CarryRegardless,
    /// Tombstones take the room that the cleaner needs.
    TakeTheLast,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 18] = [
        Mutant::SkipFlush,
        Mutant::AcknowledgeEarly,
        Mutant::WriteNotDurable,
        Mutant::TrustLength,
        Mutant::DropReadCheck,
        Mutant::ReuseIncarnation,
        Mutant::FreeTombstones,
        Mutant::Resurrect,
        Mutant::EraseEarly,
        Mutant::TurnIndexEarly,
        Mutant::ForgetTombstones,
        Mutant::CopyUnchecked,
        Mutant::CopyDeleted,
        Mutant::ForgetUnseen,
        Mutant::ForgetGraves,
        Mutant::CleanUnseen,
        Mutant::CarryRegardless,
        Mutant::TakeTheLast,
    ];

    /// Has the engines of this process be the mutant of this name, or none: the first word counts.
    ///
    /// # Panics
    /// If there is no such mutant.
    pub fn choose(name: Option<&str>) {
        let known = |name: &str| {
            let mut all = Mutant::ALL.into_iter();
            let found = all.find(|it| format!("{it:?}") == name);
            assert!(
                found.is_some(),
                "there is no mutant '{name}' among {:?}",
                Mutant::ALL
            );
            found
        };
        CURRENT.get_or_init(|| name.and_then(known));
    }

    /// The one that runs in this process.
    pub(crate) fn current() -> Option<Mutant> {
        CURRENT.get().copied().flatten()
    }
}

#[cfg(feature = "mutants")]
static CURRENT: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();

/// Whether the engine is this mutant: never, without the feature.
macro_rules! mutant {
    ($name:ident) => {{
        #[cfg(feature = "mutants")]
        {
            $crate::mutants::Mutant::current() == Some($crate::mutants::Mutant::$name)
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }};
}
pub(crate) use mutant;
