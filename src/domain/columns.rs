//! Which columns of a dataset mean what.

use serde::{Deserialize, Serialize};

/// Maps the task's roles to the dataset's column names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// Column with the text (the first of a pair).
    #[serde(default = "default_text")]
    pub text: String,
    /// Column with the second text of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    /// Column with the label.
    #[serde(default = "default_label")]
    pub label: String,
}

fn default_text() -> String {
    "text".to_owned()
}

fn default_label() -> String {
    "label".to_owned()
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            text: default_text(),
            text_pair: None,
            label: default_label(),
        }
    }
}
