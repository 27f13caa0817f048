//! Frames in pieces, and bytes that are no frames.

use ashlar_cluster_object::BufferPool;
use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FrameHeader, Opcode, encode_control};
use ashlar_layout::ids::Epoch;
use ashlar_layout::message::Reply;
use proptest::prelude::*;

use crate::reader::{ReadError, Reader};

fn frame(request: u64, payload: &[u8]) -> Vec<u8> {
    let control = encode_control(&Reply::Shard {
        shard_len: 7,
        shard_crc: 8,
    });
    let crc = crc32(payload);
    let header = FrameHeader::new(
        Opcode::Reply,
        request,
        Epoch(3),
        &control,
        payload.len(),
        crc,
    )
    .unwrap();
    [&header.encode()[..], &control, payload].concat()
}

/// All frames of a stream, and how it ended.
fn read(stream: &[u8], piece: usize) -> (Vec<(u64, Vec<u8>)>, ReadError) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut reader = Reader::new(BufferPool::new(0));
        let mut frames = Vec::new();
        let mut rest = stream;
        loop {
            loop {
                match reader.next() {
                    Ok(Some(incoming)) => {
                        if let Ok((_, payload, crc)) = incoming.reply {
                            assert_eq!(crc, crc32(&payload));
                            frames.push((incoming.request, payload.to_vec()));
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return (frames, error),
                }
            }
            let (mut now, later) = rest.split_at(piece.min(rest.len()));
            rest = later;
            // A reader takes as much as it has room for; the rest comes again.
            if let Err(error) = reader.fill(&mut now).await {
                return (frames, error);
            }
            while !now.is_empty() {
                while let Ok(Some(incoming)) = reader.next() {
                    let (_, payload, _) = incoming.reply.unwrap();
                    frames.push((incoming.request, payload.to_vec()));
                }
                if let Err(error) = reader.fill(&mut now).await {
                    return (frames, error);
                }
            }
        }
    })
}

proptest! {
    #[test]
    fn frames_in_any_pieces_come_out_whole(
        sizes in prop::collection::vec(prop_oneof![0usize..100, 60_000usize..200_000], 0..6),
        piece in 1usize..100_000,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for (i, size) in sizes.into_iter().enumerate() {
            let payload: Vec<u8> = (0..size).map(|b| (b * 7 + i) as u8).collect();
            stream.extend(frame(i as u64, &payload));
            expected.push((i as u64, payload));
        }
        // Tiny pieces of large streams take long and show nothing new.
        let piece = piece.max(stream.len() / 2000);
        let (frames, end) = read(&stream, piece);
        prop_assert!(frames == expected);
        prop_assert!(matches!(end, ReadError::Closed));
        let end = cut.index(stream.len() + 1);
        let (frames, _) = read(&stream[..end], piece);
        prop_assert!(expected.starts_with(&frames));
    }

    #[test]
    fn a_flipped_bit_is_never_taken_for_a_frame(bit in 0usize..8 * 180) {
        let good = frame(1, &[5; 96]);
        let mut bad = good.clone();
        let at = bit / 8 % bad.len();
        bad[at] ^= 1 << (bit % 8);
        let (frames, _) = read(&bad, 1000);
        prop_assert!(frames.is_empty(), "bit {bit}");
    }

    #[test]
    fn garbage_ends_the_connection(bytes in prop::collection::vec(any::<u8>(), 64..300)) {
        let (frames, end) = read(&bytes, 100);
        prop_assert!(frames.is_empty());
        prop_assert!(matches!(end, ReadError::Frame(_)));
    }
}
