//! The Hugging Face settings, read once, so that nothing below looks at the process's environment.

use std::env;
use std::path::PathBuf;

/// Where the Hub is when `HF_ENDPOINT` does not say.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A snapshot of the variables that `huggingface_hub` documents.
#[derive(Clone, Default)]
pub struct HubEnv {
    /// `HF_ENDPOINT`: the Hub's base URL.
    pub endpoint: Option<String>,
    /// `HF_TOKEN`. Without it `hf-hub` itself looks for the token file that `hf auth login` writes.
    pub token: Option<String>,
    /// `HF_HOME`.
    pub home: Option<PathBuf>,
    /// `HF_HUB_CACHE`, or its old name `HUGGINGFACE_HUB_CACHE`.
    pub hub_cache: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`: the Hub is not asked.
    pub offline: bool,
    /// `XDG_CACHE_HOME`.
    pub xdg_cache_home: Option<PathBuf>,
    /// `HOME`.
    pub user_home: Option<PathBuf>,
}

impl HubEnv {
    /// What this process was started with. Empty variables count as not set.
    pub fn from_process() -> Self {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| text(name).map(PathBuf::from);
        Self {
            endpoint: text("HF_ENDPOINT"),
            token: text("HF_TOKEN"),
            home: path("HF_HOME"),
            hub_cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")),
            offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            user_home: path("HOME"),
        }
    }

    /// The Hub's base URL, without a slash at its end.
    pub fn endpoint(&self) -> &str {
        let endpoint = self.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT);
        endpoint.trim_end_matches('/')
    }

    /// The local hub cache, by the rules of `huggingface_hub`.
    pub fn cache_dir(&self) -> PathBuf {
        if let Some(cache) = &self.hub_cache {
            return cache.clone();
        }
        if let Some(home) = &self.home {
            return home.join("hub");
        }
        let cache = match (&self.xdg_cache_home, &self.user_home) {
            (Some(xdg), _) => xdg.clone(),
            (None, Some(home)) => home.join(".cache"),
            (None, None) => PathBuf::from(".cache"),
        };
        cache.join("huggingface").join("hub")
    }
}

// By hand: the token must not reach a log.
impl std::fmt::Debug for HubEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubEnv")
            .field("endpoint", &self.endpoint())
            .field("has_token", &self.token.is_some())
            .field("cache_dir", &self.cache_dir())
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// `huggingface_hub.constants.ENV_VARS_TRUE_VALUES`.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_python_has_it() {
        let mut env = HubEnv {
            user_home: Some("/home/ada".into()),
            ..HubEnv::default()
        };
        let dir = |env: &HubEnv| env.cache_dir().display().to_string();
        assert_eq!(dir(&env), "/home/ada/.cache/huggingface/hub");
        env.xdg_cache_home = Some("/x".into());
        assert_eq!(dir(&env), "/x/huggingface/hub");
        env.home = Some("/hf".into());
        assert_eq!(dir(&env), "/hf/hub");
        env.hub_cache = Some("/cache".into());
        assert_eq!(dir(&env), "/cache");
    }

    #[test]
    fn the_token_is_not_printed() {
        let env = HubEnv {
            token: Some("hf_secret".into()),
            endpoint: Some("http://hub/".into()),
            ..HubEnv::default()
        };
        assert!(!format!("{env:?}").contains("secret"));
        assert_eq!(env.endpoint(), "http://hub");
        assert!(is_true("yes") && is_true("1") && !is_true("0"));
    }
}
