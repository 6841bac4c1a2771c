//! Floats that come back from JSON as they went: `serde_json` writes the shortest decimal that names a float,
//! but reads it a unit in the last place off now and then (its feature `float_roundtrip` is slower and off).
//! A resumed training would log other losses than an uninterrupted one.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::value::RawValue;

use crate::domain::ClassResult;

use super::state::LogEntry;

type Fields = BTreeMap<String, Box<RawValue>>;

fn parse<E: Error>(raw: &RawValue) -> Result<f64, E> {
    raw.get().trim().parse().map_err(E::custom)
}

/// One float.
pub fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    parse(&Box::<RawValue>::deserialize(from)?)
}

/// A float or `null`.
pub fn option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    let raw = Option::<Box<RawValue>>::deserialize(from)?;
    raw.filter(|raw| raw.get() != "null")
        .map(|raw| parse(&raw))
        .transpose()
}

/// Floats by name.
pub fn map<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let fields = Fields::deserialize(from)?;
    fields
        .into_iter()
        .map(|(name, raw)| Ok((name, parse(&raw)?)))
        .collect()
}

/// Results per class.
pub fn classes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<ClassResult>, D::Error> {
    let read = |mut fields: Fields| {
        Ok(ClassResult {
            label: other(&mut fields, "label")?,
            precision: parse(&field(&mut fields, "precision")?)?,
            recall: parse(&field(&mut fields, "recall")?)?,
            f1: parse(&field(&mut fields, "f1")?)?,
            support: other(&mut fields, "support")?,
        })
    };
    Vec::<Fields>::deserialize(from)?
        .into_iter()
        .map(read)
        .collect()
}

/// Log entries, whose values stand beside their step and epoch.
pub fn log<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<LogEntry>, D::Error> {
    let read = |mut fields: Fields| {
        Ok(LogEntry {
            epoch: parse(&field(&mut fields, "epoch")?)?,
            step: other(&mut fields, "step")?,
            values: fields
                .into_iter()
                .map(|(name, raw)| Ok((name, parse(&raw)?)))
                .collect::<Result<_, D::Error>>()?,
        })
    };
    Vec::<Fields>::deserialize(from)?
        .into_iter()
        .map(read)
        .collect()
}

fn field<E: Error>(fields: &mut Fields, name: &'static str) -> Result<Box<RawValue>, E> {
    fields.remove(name).ok_or_else(|| E::missing_field(name))
}

/// A field that is no float.
fn other<T: serde::de::DeserializeOwned, E: Error>(
    fields: &mut Fields,
    name: &'static str,
) -> Result<T, E> {
    let custom = |error: &dyn Display| E::custom(format!("{name}: {error}"));
    serde_json::from_str(field::<E>(fields, name)?.get()).map_err(|e| custom(&e))
}

#[cfg(test)]
mod tests {
    use super::super::evaluate::Evaluation;
    use super::super::state::TrainerState;
    use super::*;

    /// SplitMix64.
    fn random(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = *state;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x >> 11) as f64 / (1u64 << 53) as f64
    }

    #[test]
    fn every_bit_of_every_float_comes_back_where_serde_json_alone_loses_some() {
        let (mut seed, mut lost) = (1, 0);
        for _ in 0..1000 {
            let mut next = || random(&mut seed) * 3.0;
            let state = TrainerState {
                loss_since_log: next(),
                loss_total: next(),
                best_metric: Some(next()),
                last_eval: BTreeMap::from([("eval_loss".to_owned(), next())]),
                best_evaluation: Some(Evaluation {
                    metrics: BTreeMap::from([("eval_loss".to_owned(), next())]),
                    classes: vec![ClassResult {
                        label: "a \"b\"".to_owned(),
                        precision: next(),
                        recall: next(),
                        f1: next(),
                        support: 7,
                    }],
                    majority_share: next(),
                }),
                log_history: vec![LogEntry {
                    epoch: next(),
                    step: 3,
                    values: BTreeMap::from([("loss".to_owned(), next())]),
                }],
                ..TrainerState::default()
            };
            let text = serde_json::to_string_pretty(&state).unwrap();
            assert_eq!(serde_json::from_str::<TrainerState>(&text).unwrap(), state);
            let plain: f64 = serde_json::from_str(&state.loss_total.to_string()).unwrap();
            lost += u32::from(plain != state.loss_total);
        }
        assert!(lost > 0, "serde_json reads exactly now: this module can go");
    }
}
