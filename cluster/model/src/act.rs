//! What may happen next.

/// One event of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// The next item from one replica reaches another.
    Deliver {
        /// The sender's node.
        from: usize,
        /// The receiver's.
        to: usize,
    },
    /// The next message is lost; the connection stays.
    Drop {
        /// The sender's node.
        from: usize,
        /// The receiver's.
        to: usize,
    },
    /// The next message arrives, and will once more.
    Repeat {
        /// The sender's node.
        from: usize,
        /// The receiver's.
        to: usize,
    },
    /// The oldest write under way becomes durable.
    Flush {
        /// On which node.
        node: usize,
    },
    /// The oldest thing that an index waits for is done.
    Index {
        /// On which node.
        node: usize,
    },
    /// A deadline that has come is acted upon.
    Timer {
        /// By which node.
        node: usize,
    },
    /// Time goes on by a quantum. Whoever is not told of it is slow, or stands still.
    Tick,
    /// A process ends, with power: of its writes under way so many are durable.
    Crash {
        /// Which.
        node: usize,
        /// So many.
        keep: usize,
        /// Whether what it said last is lost.
        lost: bool,
        /// Whether its device loses the last record that was durable.
        rot: bool,
    },
    /// It is started again, and replays its log.
    Restart {
        /// Which.
        node: usize,
    },
    /// A connection breaks and is made again.
    Break {
        /// One end.
        a: usize,
        /// The other.
        b: usize,
    },
    /// A connection that was cut is made again.
    Mend {
        /// Which one of them.
        nth: usize,
    },
    /// A client sends its request to a replica that says that it serves.
    Propose {
        /// Which client.
        client: usize,
        /// To which node.
        to: usize,
    },
    /// The request arrives.
    Arrive {
        /// Whose.
        client: usize,
    },
    /// The client gives the attempt up: its answer does not count any more.
    GiveUp {
        /// Which client.
        client: usize,
    },
    /// An attempt that was given up arrives.
    Stray {
        /// Whose.
        client: usize,
        /// Which one.
        nth: usize,
    },
    /// A reader looks the object up.
    LookUp {
        /// Which reader.
        reader: usize,
        /// At which node.
        node: usize,
    },
    /// A reader begins to read what it remembers.
    Begin {
        /// Which.
        reader: usize,
    },
    /// A witness answers it.
    Witness {
        /// Which reader.
        reader: usize,
        /// Which witness.
        node: usize,
    },
    /// A replica is told the next version of the cluster map.
    Desire {
        /// Which.
        node: usize,
    },
}
