//! One request to a system that wants to be told something, through the HTTP client that storage already uses.

use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use object_store::ClientOptions;
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use std::time::Duration;

/// Nobody waits longer for a system that only listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server said.
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// Sends `body` to somebody who must take it; gives the answer's body.
///
/// # Errors
/// As [`ask`]; `Transient` for an answer that is not 2xx.
pub async fn send(method: &str, url: &str, content_type: &str, body: Bytes, token_variable: Option<&str>) -> Result<Bytes> {
    let Answer { status, body } = ask(method, url, content_type, body, token_variable).await?;
    if !(200..300).contains(&status) {
        let said = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        return Err(Error::new(Kind::Transient, format_args!("{method} {url}: status {status}: {said}")));
    }
    Ok(body)
}

/// Sends `body` and gives the answer, whatever it is. The token, read from the environment variable of that name where one is set,
/// goes along as `Authorization: Bearer`.
///
/// # Errors
/// `Usage` for what is no URL; `Transient` for no answer in ten seconds.
pub async fn ask(method: &str, url: &str, content_type: &str, body: Bytes, token_variable: Option<&str>) -> Result<Answer> {
    let wrong = |error: &dyn std::fmt::Display| Error::usage(format_args!("{method} {url}: {error}"));
    let failed = |error: &dyn std::fmt::Display| Error::new(Kind::Transient, format_args!("{method} {url}: {error}"));
    let options = ClientOptions::new().with_timeout(PATIENCE).with_connect_timeout(PATIENCE).with_allow_http(true);
    let client = ReqwestConnector::default().connect(&options)?;
    let mut request = HttpRequest::new(HttpRequestBody::from(body));
    *request.method_mut() = method.parse().map_err(|error| wrong(&error))?;
    *request.uri_mut() = url.parse().map_err(|error| wrong(&error))?;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(wrong(&"a URL begins with http:// or https://"));
    }
    request.headers_mut().insert("content-type", content_type.parse().map_err(|error| wrong(&error))?);
    if let Some(token) = token_variable.and_then(|name| std::env::var(name).ok()).filter(|token| !token.is_empty()) {
        let header = format!("Bearer {token}").parse().map_err(|_| wrong(&"its token is not fit for a header"))?;
        request.headers_mut().insert("authorization", header);
    }
    let answer = client.execute(request).await.map_err(|error| failed(&error))?;
    let status = answer.status().as_u16();
    let body = answer.into_body().bytes().await.map_err(|error| failed(&error))?;
    Ok(Answer { status, body })
}
