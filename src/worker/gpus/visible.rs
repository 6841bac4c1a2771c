//! `CUDA_VISIBLE_DEVICES` as CUDA reads it: a list of numbers and UUIDs, of which the beginning suffices; what
//! follows the first that names nothing is not visible either.
//!
//! Numbers count the GPUs in the order of the bus, as with `CUDA_DEVICE_ORDER=PCI_BUS_ID` and in `nvidia-smi`. CUDA's own
//! order puts the fastest first, which differs only between unequal cards; a UUID is always clear.

use super::{Card, Gpu};

/// The cards that `setting` leaves, in its order; all without one.
pub(super) fn visible(gpus: Vec<Gpu>, setting: Option<&str>) -> Vec<Card> {
    let Some(setting) = setting else {
        return gpus.into_iter().flat_map(|gpu| gpu.cards).collect();
    };
    let mut cards: Vec<Card> = Vec::new();
    for named in setting
        .split(',')
        .map_while(|word| named(&gpus, word.trim()))
    {
        for card in named {
            if !cards.contains(card) {
                cards.push(card.clone());
            }
        }
    }
    cards
}

/// The cards that a word means; `None` if it means nothing, or more than one thing.
fn named<'a>(gpus: &'a [Gpu], word: &str) -> Option<&'a [Card]> {
    if let Ok(number) = word.parse::<usize>() {
        return gpus.get(number).map(|gpu| gpu.cards.as_slice());
    }
    if word.starts_with("GPU-") {
        let gpus = gpus.iter().filter(|gpu| gpu.uuid.starts_with(word));
        return only(gpus).map(|gpu| gpu.cards.as_slice());
    }
    let cards = gpus.iter().flat_map(|gpu| &gpu.cards);
    let instances = cards.filter(|card| word.starts_with("MIG-") && card.uuid.starts_with(word));
    only(instances).map(std::slice::from_ref)
}

fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(uuid: &str) -> Card {
        Card {
            uuid: uuid.to_owned(),
            name: "card".to_owned(),
            memory_bytes: None,
        }
    }

    fn gpu(uuid: &str, cards: &[&str]) -> Gpu {
        Gpu {
            uuid: uuid.to_owned(),
            cards: cards.iter().map(|uuid| card(uuid)).collect(),
        }
    }

    /// Two whole GPUs, one that does not answer, one in two instances.
    fn uuids(setting: Option<&str>) -> Vec<String> {
        let gpus = vec![
            gpu("GPU-aa1", &["GPU-aa1"]),
            gpu("GPU-aa2", &["GPU-aa2"]),
            gpu("", &[]),
            gpu("GPU-b", &["MIG-b1", "MIG-b2"]),
        ];
        let cards = visible(gpus, setting);
        cards.into_iter().map(|card| card.uuid).collect()
    }

    #[test]
    fn without_a_setting_all_are_visible() {
        assert_eq!(uuids(None), ["GPU-aa1", "GPU-aa2", "MIG-b1", "MIG-b2"]);
    }

    #[test]
    fn numbers_and_uuids_in_the_order_given() {
        assert_eq!(uuids(Some("1")), ["GPU-aa2"]);
        assert_eq!(uuids(Some("1, 0,1")), ["GPU-aa2", "GPU-aa1"]);
        assert_eq!(uuids(Some("GPU-aa2,MIG-b2")), ["GPU-aa2", "MIG-b2"]);
        assert_eq!(uuids(Some("GPU-b")), ["MIG-b1", "MIG-b2"]);
        assert_eq!(uuids(Some("3,2,0")), ["MIG-b1", "MIG-b2", "GPU-aa1"]);
    }

    #[test]
    fn the_first_that_names_nothing_ends_the_list() {
        for nothing in ["", "-1", "NoDevFiles", "9", "GPU-a", "GPU-c", "MIG-", "aa1"] {
            assert_eq!(uuids(Some(nothing)), [""; 0], "{nothing}");
            assert_eq!(uuids(Some(&format!("1,{nothing},0"))), ["GPU-aa2"]);
        }
    }
}
