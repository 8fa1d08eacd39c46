//! The address of a server that asks who is there: the URL says where, the environment says who.
//!
//! A password in a URL ends in a process list, a job file or a log; so a URL that has one is refused, unread.

use crate::error::{Error, Result};
use url::Url;

/// Environment variables of the user and the password of serving stores.
pub const USER_VARIABLE: &str = "NIGHTMARKET_STORE_USER";
pub const PASSWORD_VARIABLE: &str = "NIGHTMARKET_STORE_PASSWORD";

#[derive(Clone)]
pub struct Server {
    /// Without credentials, fit for logs.
    pub url: Url,
    pub user: Option<String>,
    pub password: Option<String>,
}

impl Server {
    /// Reads an address and, from the environment, who we are there.
    ///
    /// # Errors
    /// `Usage` for what is no URL and for a URL with credentials; the message never repeats it.
    pub fn read(address: &str) -> Result<Self> {
        let url = Url::parse(address).map_err(|error| Error::usage(format_args!("the address of the serving store is no URL: {error}")))?;
        let named = |key: &str| ["user", "password", "pass", "username"].contains(&key.to_lowercase().as_str());
        if !url.username().is_empty() || url.password().is_some() || url.query_pairs().any(|(key, _)| named(&key)) {
            return Err(Error::usage("the address of the serving store holds credentials")
                .action(format_args!("take them out of it and set {USER_VARIABLE} and {PASSWORD_VARIABLE}")));
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Ok(Self { url, user: variable(USER_VARIABLE), password: variable(PASSWORD_VARIABLE) })
    }

    /// The address with the credentials in it, for the libraries that connect and for nobody else.
    pub fn with_credentials(&self) -> Result<Url> {
        // The one character that the URL would not encode by itself.
        let encoded = |text: &Option<String>| text.as_ref().map(|text| text.replace('%', "%25"));
        let mut url = self.url.clone();
        let set =
            url.set_username(encoded(&self.user).as_deref().unwrap_or_default()).and(url.set_password(encoded(&self.password).as_deref()));
        match (set, &self.user, &self.password) {
            (Err(()), Some(_), _) | (Err(()), _, Some(_)) => Err(Error::usage(format_args!("{} has no place for credentials", self.url))),
            _ => Ok(url),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.url.as_str())
    }
}
