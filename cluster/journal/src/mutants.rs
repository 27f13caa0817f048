//! Replicas that do one thing wrong: the simulator and the model checker must notice each of them.
//!
//! Each changes one line of behaviour, and exists only with the feature `mutants`.

/// What a replica does wrong.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A candidate takes office with one promise too few.
    SealQuorumShort,
    /// A follower acknowledges what it received, durable or not.
    AckBeforeDurable,
    /// A head counts copies of entries of older reigns.
    CommitAcrossEpochs,
    /// A follower takes what its head sends without looking whether it joins on to its log.
    RejoinWithoutResync,
    /// The witness table is raised when an entry is applied, not when it is received.
    WitnessAfterReply,
    /// A new head forgets which requests were done.
    DedupNotCarried,
    /// A replica whose last records are damaged counts like any other.
    CountDamagedTail,
    /// A restarted replica does not know what it promised.
    PromiseForgotten,
    /// A head serves reads for four leases instead of half of one.
    LeaseTooLong,
    /// A head goes from one odd configuration to the next without the union in between.
    ConfigSkipsUnion,
    /// A witness that does not know what it received before its restart speaks all the same.
    WitnessSpeaksEarly,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 11] = [
        Mutant::SealQuorumShort,
        Mutant::AckBeforeDurable,
        Mutant::CommitAcrossEpochs,
        Mutant::RejoinWithoutResync,
        Mutant::WitnessAfterReply,
        Mutant::DedupNotCarried,
        Mutant::CountDamagedTail,
        Mutant::PromiseForgotten,
        Mutant::LeaseTooLong,
        Mutant::ConfigSkipsUnion,
        Mutant::WitnessSpeaksEarly,
    ];
}

/// Whether the replica is this mutant: never, without the feature.
macro_rules! mutant {
    ($replica:expr, $name:ident) => {{
        #[cfg(feature = "mutants")]
        {
            $replica.config.mutant == Some($crate::mutants::Mutant::$name)
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }};
}

pub(crate) use mutant;
