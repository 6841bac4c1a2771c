//! The embedded data set: support tickets, each with the team it belongs to. Written one by one for this
//! project.

/// 640 tickets to train on.
pub const TRAIN: &str = include_str!("support-tickets-train.csv");
/// 160 tickets held out.
pub const EVAL: &str = include_str!("support-tickets-eval.csv");

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashSet};

    use super::*;

    fn rows(text: &str) -> Vec<(String, String)> {
        csv::Reader::from_reader(text.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    fn words(text: &str) -> BTreeSet<String> {
        text.to_lowercase()
            .split(|c: char| !c.is_alphanumeric())
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn there_are_enough_rows_of_every_label() {
        for (text, at_least, per_label) in [(TRAIN, 600, 60), (EVAL, 120, 15)] {
            let rows = rows(text);
            assert!(rows.len() >= at_least);
            let mut counts = BTreeMap::new();
            for (_, label) in rows {
                *counts.entry(label).or_insert(0usize) += 1;
            }
            assert!(counts.len() >= 6, "{counts:?}");
            assert!(counts.values().all(|&n| n >= per_label), "{counts:?}");
        }
    }

    #[test]
    fn no_text_is_there_twice_and_nothing_held_out_was_trained_on() {
        let mut seen = HashSet::new();
        for (text, _) in rows(TRAIN).into_iter().chain(rows(EVAL)) {
            let normalized = words(&text).into_iter().collect::<Vec<_>>().join(" ");
            assert!(seen.insert(normalized), "twice: {text}");
        }
    }

    /// Near-duplicates: no two texts share half of their words or more.
    #[test]
    fn all_texts_are_distinct() {
        let all: Vec<(String, BTreeSet<String>)> = rows(TRAIN)
            .into_iter()
            .chain(rows(EVAL))
            .map(|(text, _)| (text.clone(), words(&text)))
            .collect();
        for (i, (a, words_a)) in all.iter().enumerate() {
            for (b, words_b) in &all[i + 1..] {
                let shared = words_a.intersection(words_b).count();
                let all = words_a.len() + words_b.len() - shared;
                assert!(2 * shared < all, "too alike:\n{a}\n{b}");
            }
        }
    }

    #[test]
    fn texts_vary_in_length() {
        let lengths: Vec<usize> = rows(TRAIN)
            .iter()
            .map(|(text, _)| text.split_whitespace().count())
            .collect();
        assert!(lengths.iter().filter(|&&n| n <= 8).count() >= 30);
        assert!(lengths.iter().filter(|&&n| n >= 30).count() >= 30);
    }
}
