-- Step: reads what all later steps need.
--
-- The times that the rules use, in ms, are constants of the steps that need them:
--   margin   5 min    upper bound of clock differences and delays between Clerk and us (R2, R4, R7)
--   skew     2.1 s    clock difference between Clerk's servers, and the time to send an event
--   soon     5 s      events of one object so close together may be in the wrong order (R9)
--   hour     1 h      after this a contradiction is believed (R2),
--   day      24 h       and after this if it gives more access than what it contradicts allows
create or replace function clerk_sync.read_context(source text, mode text, changes clerk_sync.change_v1[], deletions clerk_sync.deletion_v1[])
  returns clerk_sync.context
  language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  context clerk_sync.context;
begin
  context.from_webhook := source = 'webhook';
  context.from_list := source = 'list';
  context.from_read := source in ('read', 'undelete', 'development');
  context.undelete := source = 'undelete';
  context.is_believed := source = 'development';
  if context.is_believed and not exists (select from clerk_sync.instance where environment = 'development') then
    raise exception 'only what is read of a development instance is believed at once' using errcode = 'CS005';
  end if;
  context.in_full := mode is null;
  context.ahead_limit := (extract(epoch from pg_catalog.now()) * 1000)::bigint + 300000;
  if context.from_webhook then
    select max(started_at) filter (where kind = 'user'), max(started_at) filter (where kind = 'organization'),
           max(started_at) filter (where kind = 'membership'),
           exists (select from clerk_sync.denials) or exists (select from clerk_sync.pending_reads where reason = 'refused'),
           exists (select from clerk_sync.listings)
      into context.user_watermark, context.organization_watermark, context.membership_watermark, context.has_refused, context.is_listing
      from clerk_sync.pass_watermarks;
    if context.is_listing then
      select max(started_at) filter (where kind = 'user'), max(started_at) filter (where kind = 'organization'),
             max(started_at) filter (where kind = 'membership'),
             max(listed_to) filter (where kind = 'user'), max(listed_to) filter (where kind = 'organization'),
             max(listed_to) filter (where kind = 'membership')
        into context.user_listing, context.organization_listing, context.membership_listing,
             context.users_listed_to, context.organizations_listed_to, context.memberships_listed_to
        from clerk_sync.listings;
    end if;
    return context;
  end if;
  if exists (select from unnest(changes) where observed_at > context.ahead_limit)
     or exists (select from unnest(deletions) where observed_at > context.ahead_limit) then
    raise exception 'a response of Clerk''s API is dated more than five minutes ahead of the database''s clock' using errcode = 'CS003';
  end if;
  context.has_refused := exists (select from clerk_sync.denials) or exists (select from clerk_sync.pending_reads where reason = 'refused');
  return context;
end
$$;

revoke all on function clerk_sync.read_context(text, text, clerk_sync.change_v1[], clerk_sync.deletion_v1[]) from public, anon, authenticated, service_role;
