//! Rows counted per class.

/// For each class how often it is right, predicted and true: the diagonal and the margins of the confusion
/// matrix, which is all that the metrics here need (the matrix of 10,000 labels would take 800 MB).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassCounts {
    classes: Vec<ClassCount>,
    rows: u64,
}

/// One class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCount {
    /// Rows of this class that were predicted so.
    pub correct: u64,
    /// Rows predicted as this class.
    pub predicted: u64,
    /// Rows of this class.
    pub support: u64,
}

/// Why rows could not be counted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// Not one prediction per label.
    #[error("{predictions} predictions for {labels} labels")]
    Length {
        /// Predictions given.
        predictions: usize,
        /// Labels given.
        labels: usize,
    },
    /// An id that is no class.
    #[error("class {id} of {classes}")]
    Class {
        /// The id.
        id: u32,
        /// How many classes there are.
        classes: usize,
    },
}

impl ClassCounts {
    /// No rows yet, of this many classes.
    pub fn new(classes: usize) -> Self {
        Self {
            classes: vec![ClassCount::default(); classes],
            rows: 0,
        }
    }

    /// Counts a batch of class ids.
    ///
    /// # Errors
    /// If the lengths differ or an id is no class; nothing is counted then.
    pub fn update(&mut self, predictions: &[u32], labels: &[u32]) -> Result<(), MetricError> {
        if predictions.len() != labels.len() {
            return Err(MetricError::Length {
                predictions: predictions.len(),
                labels: labels.len(),
            });
        }
        let classes = self.classes.len();
        if let Some(&id) = [predictions, labels]
            .into_iter()
            .flatten()
            .find(|&&id| id as usize >= classes)
        {
            return Err(MetricError::Class { id, classes });
        }
        for (&prediction, &label) in predictions.iter().zip(labels) {
            self.classes[prediction as usize].predicted += 1;
            self.classes[label as usize].support += 1;
            self.classes[label as usize].correct += u64::from(prediction == label);
        }
        self.rows += labels.len() as u64;
        Ok(())
    }

    /// Forgets all rows.
    pub fn reset(&mut self) {
        self.classes.fill(ClassCount::default());
        self.rows = 0;
    }

    /// Rows counted.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// In class-id order.
    pub fn classes(&self) -> &[ClassCount] {
        &self.classes
    }

    /// Rows whose prediction is right.
    pub fn correct(&self) -> u64 {
        self.classes.iter().map(|class| class.correct).sum()
    }

    /// Share of the most frequent class: what always guessing it would score.
    pub fn majority_share(&self) -> f64 {
        let most = self.classes.iter().map(|class| class.support).max();
        super::ratio(most.unwrap_or(0), self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up() {
        let mut streamed = ClassCounts::new(4);
        streamed.update(&[0, 0, 1], &[0, 0, 0]).unwrap();
        streamed.update(&[], &[]).unwrap();
        streamed
            .update(&[1, 2, 2, 2, 0, 2, 1], &[1, 1, 2, 2, 2, 2, 3])
            .unwrap();
        assert_eq!(streamed, super::super::example());
        assert_eq!((streamed.rows(), streamed.correct()), (10, 6));
        assert_eq!(streamed.majority_share(), 0.4);
        streamed.reset();
        assert_eq!(streamed, ClassCounts::new(4));
        assert_eq!(streamed.majority_share(), 0.0);
    }

    #[test]
    fn what_cannot_be_counted_is_refused_whole() {
        let mut counts = ClassCounts::new(2);
        let error = counts.update(&[0, 1], &[0]).unwrap_err();
        assert_eq!(error.to_string(), "2 predictions for 1 labels");
        assert!(counts.update(&[0, 2], &[0, 0]).is_err());
        assert!(counts.update(&[0, 0], &[0, u32::MAX]).is_err());
        assert_eq!(counts, ClassCounts::new(2));
    }
}
