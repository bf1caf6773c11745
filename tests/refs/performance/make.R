# What performance and sjPlot's tab_model say of the models in cases.json, beside it as references.json: Rscript make.R, from
# this folder.
suppressMessages({library(jsonlite); library(lme4); library(lmerTest); library(glmmTMB); library(performance); library(sjPlot)})
source("../fit.R")

number <- function(x) if (is.null(x) || length(x) == 0) NA else unname(as.numeric(x))

# The cells of tab_model's page, row by row, with more digits than it prints by default.
cells <- function(m, linear) {
  arguments <- list(as.name("m"), digits = 8, digits.p = 8, digits.re = 8, digits.rsq = 8, transform = NULL, show.se = TRUE,
                    show.aic = TRUE, show.loglik = TRUE, p.style = "numeric")
  if (linear) arguments$df.method <- "satterthwaite"
  # It looks its models up by name.
  page <- eval(as.call(c(as.name("tab_model"), arguments)))$page.content
  rows <- regmatches(page, gregexpr("(?s)<tr>.*?(?=<tr>|</table>)", page, perl = TRUE))[[1]]
  lapply(rows, function(row) {
    found <- regmatches(row, gregexpr("(?s)<td[^>]*>.*?</td>", row, perl = TRUE))[[1]]
    text <- gsub("<[^>]*>", "", found)
    for (pair in list(c("&nbsp;", " "), c("&ndash;", "to"), c("&#45;", "-"), c("&sigma;", "sigma"), c("&tau;", "tau"),
                      c("&rho;", "rho"), c("&lt;", "<"))) text <- gsub(pair[1], pair[2], text, fixed = TRUE)
    as.list(trimws(text))
  })
}

said <- function(m, case) {
  linear <- case$family == "gaussian"
  r2 <- r2_nakagawa(m)
  intraclass <- icc(m)
  groups <- if (isTRUE(case$by_group)) icc(m, by_group = TRUE)
  vif <- tryCatch(as.data.frame(check_collinearity(m)), error = function(e) NULL)
  variances <- insight::get_variance(m)
  counts <- if (isTRUE(case$dispersion)) check_overdispersion(m)
  list(icc = number(intraclass$ICC_adjusted), icc_unadjusted = number(intraclass$ICC_unadjusted),
       icc_by_group = if (!is.null(groups)) setNames(as.list(groups$ICC), groups$Group),
       r2_marginal = number(r2$R2_marginal), r2_conditional = number(r2$R2_conditional),
       variance_fixed = number(variances$var.fixed), variance_random = number(variances$var.random),
       vif = if (!is.null(vif)) setNames(as.list(vif$VIF), vif$Term),
       aic = number(AIC(m)), bic = number(BIC(m)), rmse = number(performance_rmse(m)), sigma = number(sigma(m)),
       singular = as.logical(check_singularity(m)),
       dispersion_ratio = number(counts$dispersion_ratio), chisq = number(counts$chisq_statistic),
       residual_df = number(counts$residual_df),
       table = cells(m, linear))
}

cases <- fromJSON("cases.json", simplifyVector = FALSE)
out <- list()
for (name in names(cases)) {
  case <- cases[[name]]
  d <- read(case$data)
  d <- droplevels(na.omit(d[, unique(c(all.vars(as.formula(case$r)), case$weights))]))
  m <- suppressMessages(suppressWarnings(fit(case, d)))
  cat(name, "\n")
  out[[name]] <- suppressMessages(suppressWarnings(said(m, case)))
}
write(toJSON(out, digits = 15, auto_unbox = TRUE, na = "null", null = "null", pretty = 1), "references.json")
